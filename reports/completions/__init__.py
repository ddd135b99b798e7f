"""Completions as people read them: kinds of tokens, and pages with every token on the colour of its depth."""
