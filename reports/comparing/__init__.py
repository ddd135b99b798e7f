"""Two runs against each other: what changed from a run before (A) to one after (B), in tables, words and conditions."""
