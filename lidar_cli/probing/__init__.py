"""Labelled embeddings to accuracies: rows, and the classifiers that read them."""
