"""The one thread that decodes for everybody, and what it needs to be fair."""
