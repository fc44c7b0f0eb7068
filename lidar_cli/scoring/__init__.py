"""Embeddings to scores: the streaming passes, intervals, and how a score would have grown."""
