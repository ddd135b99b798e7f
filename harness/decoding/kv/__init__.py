"""KV policies, one per file: what a token that exits early leaves in the layers it skipped.

A new one subclasses :class:`harness.contracts.KVPolicy` and registers itself in the entry-point group ``harness.kv``.
"""
