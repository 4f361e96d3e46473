"""Commands of ``gleaner``: one file per command or group."""
