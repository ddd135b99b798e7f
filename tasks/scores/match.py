"""Scores of equality, as CodeXGLUE's evaluator computes them.

Source: microsoft/CodeXGLUE, Code-Code/CodeCompletion-line/evaluator/evaluator.py, commit 0401a76. It compares with
``fuzzywuzzy.fuzz.ratio``, which rounds every pair's ratio to an integer (Python's ``round``: halves to even) before the
mean is taken. Its published results come from python-Levenshtein's ratio, 1 − (insertions + deletions) / total length,
which fuzzywuzzy uses when it is installed; ``difflib``'s, its fallback, misses them (70.32 instead of 71.05 on the
golden pairs of 2020-09-09). So does rounding halves up (71.06), and no rounding at all (43.51 instead of 43.8 on the
golden pairs of HEAD). All scores compare text with its literals restored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from rapidfuzz.distance import Indel

from harness.contracts import Completion, Score, common_prefix, first_line
from harness.contracts.scores import Pair
from tasks.languages import END_OF_LINE

_NAMED_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_TOKEN = re.compile(rf"{END_OF_LINE}|\w+|[^\w\s]")


def restore_literals(text: str) -> str:
    """Return text with CodeXGLUE's placeholders resolved, as ``post_process`` of the official evaluator does.

    ``<STR_LIT:x>`` → ``x``, the same for ``NUM`` and ``CHAR``; ``<NUM_LIT>`` → ``0``; ``<STR_LIT>``, ``<CHAR_LIT>`` →
    nothing.
    """
    text = text.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _NAMED_LITERAL.sub(lambda match: match[1], text)


def restored(pairs: Sequence[Pair]) -> list[Pair]:
    """Return texts and references with their literals restored."""
    return [(restore_literals(text), restore_literals(reference)) for text, reference in pairs]


def code_tokens(text: str) -> list[str]:
    """Return names, numbers and ``<EOL>`` whole, every other visible character by itself; case is kept.

    Unlike white-space tokens they do not depend on formatting, and unlike ROUGE's own they keep operators.
    """
    return _TOKEN.findall(text)


def as_source(text: str) -> str:
    """Return text that a parser can read: ``<EOL>`` becomes a newline."""
    return text.replace(END_OF_LINE, "\n")


class ExactMatch(Score):
    """Share of completions identical to the reference, white space aside."""

    title = "exact match"
    sections: ClassVar = {"Scores": 1, "figures": 3, "leaderboard": 2.3}

    def sample(self, completion: Completion) -> float:
        text, reference = (restore_literals(whole).split() for whole in (completion.text, completion.reference))
        return float(text == reference)


class EditSimilarity(Score):
    """Edit similarity to the reference, 1 is identical."""

    title = "edit similarity"
    sections: ClassVar = {"Scores": 0, "headline": 2, "figures": 1}

    def sample(self, completion: Completion) -> float:
        return edit_similarity(restore_literals(completion.text), restore_literals(completion.reference)) / 100


class TokenAccuracy(Score):
    """Share of tokens that equal the reference's at the same place."""

    title = "token accuracy"
    decides = False
    sections: ClassVar = {}

    def sample(self, completion: Completion) -> float | None:
        """Return the share, ``None`` without a reference; a position that is not reached counts as wrong."""
        wanted = completion.reference_ids
        same = sum(a == b for a, b in zip(completion.token_ids, wanted, strict=False))
        return same / len(wanted) if wanted else None


class FirstLineMatch(Score):
    """Share of completions whose first line is the reference's, white space aside."""

    title = "first-line match"
    decides = False
    sections: ClassVar = {}

    def sample(self, completion: Completion) -> float | None:
        """Return 1 or 0; ``None`` where the reference has no line."""
        text, reference = (first_line(restore_literals(whole)) for whole in (completion.text, completion.reference))
        return float(text.split() == reference.split()) if reference else None


class AcceptedPrefix(Score):
    """Characters of a completion until it differs from the reference, what an editor's user can keep of it."""

    title = "accepted prefix"
    unit = "characters"
    decides = False
    sections: ClassVar = {}

    def sample(self, completion: Completion) -> float:
        return float(common_prefix(restore_literals(completion.text), restore_literals(completion.reference)))


def edit_similarity(text: str, reference: str, *, strip: bool = True) -> int:
    """Return the official edit similarity of one pair, an integer in 0…100.

    Outer white space does not count, or as in RepoBench's evaluator does. (CodeXGLUE's strips the prediction; its
    references have none.)
    """
    text, reference = (text.strip(), reference.strip()) if strip else (text, reference)
    length = len(text) + len(reference)
    return 100 if not length else round(100 * ((length - Indel.distance(text, reference)) / length))
