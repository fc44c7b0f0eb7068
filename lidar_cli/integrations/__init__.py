"""Readings while a model trains: torchmetrics objects, and a callback of Lightning for them."""
