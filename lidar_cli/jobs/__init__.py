"""One job each, returning a plain record and printing nothing."""
