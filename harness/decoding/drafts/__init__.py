"""Draft sources, one per file: tokens that are proposed without running a layer, for lossless decoding.

A new one is a frozen dataclass that subclasses :class:`harness.contracts.DraftSource` and registers itself in the
entry-point group ``harness.drafts``.
"""
