"""Build the campaign's page, one module per kind of content; ``tasks.report`` is the stage that calls them."""
