"""Records to tables, JSON, CSV, Markdown and plots."""
