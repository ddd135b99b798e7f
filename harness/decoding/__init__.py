"""The decoding engine: one greedy loop for every strategy, KV policy, family and batch size."""
