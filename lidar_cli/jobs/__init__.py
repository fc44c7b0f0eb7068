"""One job each, returning a plain record and printing nothing; their parts lie in packages."""
