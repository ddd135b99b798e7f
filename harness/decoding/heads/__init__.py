"""Cheap heads, one per file: the LM head approximated, since a check needs one probability and not a distribution.

A new one subclasses :class:`harness.contracts.CheapHead` and registers itself in the entry-point group
``harness.heads``.
"""
