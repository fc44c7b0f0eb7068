"""One self-contained HTML page about a ranking or about scores."""
