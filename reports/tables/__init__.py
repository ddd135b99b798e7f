"""A summary as people read it: in a terminal, as Markdown, LaTeX, CSV and JSON."""
