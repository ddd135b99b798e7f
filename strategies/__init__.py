"""Exit strategies, one per file: a frozen dataclass whose fields are its options.

A new one subclasses :class:`harness.contracts.Strategy`, adds ``should_exit`` and registers itself in
the entry-point group ``harness.strategies``. All are vectorised over the rows of a batch.
"""
