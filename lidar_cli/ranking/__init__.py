"""Ranks the checkpoints of a directory."""
