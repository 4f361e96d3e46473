"""Proof that a campaign is what its records say: every digest worked out again from the stored bytes."""
