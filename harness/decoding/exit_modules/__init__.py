"""Exit modules, one per file: what stands between an exit and the model's own final norm and LM head.

A new one subclasses :class:`harness.contracts.ExitModule` and registers itself in the entry-point group
``harness.exit_modules``.
"""
