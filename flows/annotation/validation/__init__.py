"""Validate returned annotations: each becomes a label, or a rejection with its reason."""
