"""Small self-supervised training runs on embedded images."""
