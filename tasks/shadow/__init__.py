"""Two models on what production sees: where they disagree, and how far it is from the pool (docs/method.md#shadow)."""
