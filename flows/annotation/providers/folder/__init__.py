"""Exchange files with annotators who use their own tool: batches in ``outbox/``, annotations in ``inbox/``."""
