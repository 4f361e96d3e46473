"""Parse annotations that come back in the inbox."""
