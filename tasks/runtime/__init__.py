"""How a stage process starts, reports progress and ends."""
