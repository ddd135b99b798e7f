"""Draft sources and draft rules, one per file: what proposes tokens without a layer, and what ends drafts of exits.

A new one is a frozen dataclass that subclasses :class:`harness.contracts.DraftSource` and registers itself in the
entry-point group ``harness.drafts``.
"""
