"""The harness from Python: a model that generates, streams and shows its exits, and runs as pandas frames."""
