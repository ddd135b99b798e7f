"""Scores of completions: how good each is beside its reference.

A score is one class in the entry-point group ``harness.scores`` (:class:`harness.contracts.Score`). The built-in ones
lie in 0…1 and see CodeXGLUE's literal placeholders restored (:func:`tasks.scores.match.restore_literals`), which
changes nothing in raw code.
"""
