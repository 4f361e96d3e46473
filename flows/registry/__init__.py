"""Publish a round in MLflow and git, and promote its model through the gate."""
