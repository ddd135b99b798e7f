"""Two runs against each other: what changed from a run before (A) to a run after (B), and what may be said of it."""
