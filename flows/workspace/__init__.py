"""The files of a campaign: scaffold, state, git, DVC, lock, crash recovery."""
