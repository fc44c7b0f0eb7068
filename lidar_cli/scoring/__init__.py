"""Embeddings to scores: streaming passes, intervals, and metrics of parts of a file."""
