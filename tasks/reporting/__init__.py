"""The campaign's page, one file per kind of content; ``tasks.report`` is the stage that calls them."""
