"""A run on disk: its folder, log, checkpoints, and how it is resumed."""
