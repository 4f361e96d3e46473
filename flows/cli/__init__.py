"""One file per command of ``gleaner`` that ``flows.cli`` does not hold itself."""
