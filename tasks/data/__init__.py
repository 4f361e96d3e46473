"""Schemas, readers and writers of the campaign's data."""
