"""Tasks: a dataset, drawn under a protocol from a named source; and the scores of completions.

One task per file. A new one subclasses :class:`tasks.code_completion.CodeCompletion`, names its
language and its datasets, and registers itself in the entry-point group ``harness.tasks``.
"""
