"""The files of a campaign: scaffold, rounds and ledgers, git, DVC, promotion log, lock and crash recovery."""
