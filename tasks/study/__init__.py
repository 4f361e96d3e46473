"""Studies: what a study file asks for, what it found, and what may be claimed from that (docs/method.md#claims)."""
