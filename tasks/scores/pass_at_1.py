"""pass@1: does the program with the completion in it pass its tests?

Source: Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374, section 2.1: with one
completion per problem the unbiased estimator is the share that passes. openai/human-eval-infilling, commit 88062ff,
``execution.py``: prompt, completion, suffix, then tests and ``check(entry_point)`` on lines of their own, 3 seconds.

Only where a run says ``--allow-code-execution``, and in the limits of :mod:`tasks.sandbox`.
"""

from __future__ import annotations

import os
from typing import ClassVar

from harness.contracts import Completion, Score
from tasks.sandbox import passes


class PassAt1(Score):
    """Share of completions whose program passes its tests (pass@1)."""

    title = "pass@1"
    sections: ClassVar = {"Scores": 0.2, "headline": 1.9, "figures": 0.5, "leaderboard": 2.1}
    languages: ClassVar[frozenset[str]] = frozenset({"python"})

    def unavailable(self) -> str | None:
        return None if os.name == "posix" else "running tests needs the process limits of Linux or macOS"

    def judges(self, completion: Completion) -> bool:
        return bool(completion.tests)

    def sample(self, completion: Completion) -> float:
        before, after = completion.around
        return float(passes(f"{before}{completion.text}{after}\n{completion.tests}"))
