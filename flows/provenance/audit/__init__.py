"""Compare everything that is stored of a campaign with the digests in its ledgers: ``gleaner audit``."""
