"""Deliver images to label providers and collect their annotations: batches, leases, validation, quarantine."""
