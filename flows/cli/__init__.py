"""Commands of ``gleaner``: those of one subject in one file."""
