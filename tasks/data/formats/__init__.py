"""Read and write annotation formats: one reader and one writer each, both without any policy.

A reader yields what a document says, each entry with its problems. Whoever calls it decides what is set aside,
quarantined or converted. ``detect`` finds out which format lies in a folder or zip archive.
"""
