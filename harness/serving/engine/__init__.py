"""The one thread that decodes for all requests, and what it needs to be fair."""
