"""The door: what comes back from annotators is checked here before it becomes source data."""
