"""Publish a round, and promote its model through the gate."""
