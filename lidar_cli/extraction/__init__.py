"""Samples through a model: the plan of a feature file, batches of views, the forward pass."""
