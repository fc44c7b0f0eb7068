"""Small self-supervised training runs on embedded images, ranked and probed."""
