"""A trained detector as a folder that runs without torch and without Gleaner."""
