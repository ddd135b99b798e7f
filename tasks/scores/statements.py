"""Scores as the evaluators of RepoBench and CrossCodeEval compute them, where they differ from those of every task.

Source: Leolty/repobench, commit 630c865, ``evaluation/metrics.py``; amazon-science/cceval, commit 25f9cab,
``scripts/eval_metric.py`` and ``eval_utils.py``. Both compare by fuzzywuzzy's ratio; with python-Levenshtein at hand
that is the one of :mod:`tasks.scores.match`, and without it ``difflib``'s, which their lists of requirements do not
decide. RepoBench's exact match and CrossCodeEval's edit similarity are the scores of that module.

Names are those of the official scorer: words outside strings that begin with a letter or an underscore, keywords left
out. For Python ``True`` and ``False`` count as names, as do ``null``, ``true`` and ``false`` for the others, C#'s
``null`` apart.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import ClassVar

from harness.contracts import Completion, Score
from tasks.scores.match import edit_similarity

_JAVA = (
    "abstract assert boolean break byte case catch char class const continue default do double else enum extends final "
    "finally float for goto if implements import instanceof int interface long native new package private protected "
    "public return short static strictfp super switch synchronized this throw throws transient try void volatile while "
    "var"
)
_CSHARP = (
    "abstract as base bool break byte case catch char checked class const continue decimal default delegate do double "
    "else enum event explicit extern finally fixed float for foreach goto if implicit in int interface internal is "
    "lock long namespace new null object operator out override params private protected public readonly ref return "
    "sbyte sealed short sizeof stackalloc static string struct switch this throw try typeof uint ulong unchecked "
    "unsafe ushort using virtual void volatile while"
)
_TYPESCRIPT = (
    "break case catch class const continue debugger default delete do else enum export extends finally for function if "
    "implements import in instanceof interface let new package private protected public return static super switch "
    "this throw try typeof var void while with yield"
)
KEYWORDS: Mapping[str, frozenset[str]] = {
    "python": frozenset(keyword.kwlist) - {"True", "False"},
    "java": frozenset(_JAVA.split()),
    "csharp": frozenset(_CSHARP.split()),
    "typescript": frozenset(_TYPESCRIPT.split()),
}
"""Language → what is no name."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'")
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"[A-Za-z_]")
_CROSSCODEEVAL = frozenset({"crosscodeeval", "crosscodeeval-fim"})


def identifiers(code: str, language: str) -> list[str]:
    """Return the names in code, in order, repetitions kept."""
    words = _WORD.findall(_STRING.sub("", code))
    return [word for word in words if _NAME.match(word) and word not in KEYWORDS[language]]


class _OfCrossCodeEval(Score):
    """A score of CrossCodeEval's completions alone."""

    languages: ClassVar[frozenset[str]] = frozenset(KEYWORDS)

    def judges(self, completion: Completion) -> bool:
        """Return whether the completion is one of CrossCodeEval's, cut and rid of comments as it asks."""
        return completion.protocol in _CROSSCODEEVAL


class StatementMatch(_OfCrossCodeEval):
    """Share of statements whose lines equal the reference's, indentation and empty lines aside (CrossCodeEval)."""

    title = "statement match"
    sections: ClassVar = {"Scores": 1.1, "headline": 2.1, "figures": 2.5}

    def sample(self, completion: Completion) -> float:
        return float(_lines(completion.text) == _lines(completion.reference))


class IdentifierMatch(_OfCrossCodeEval):
    """Share of statements with the reference's names, in its order (CrossCodeEval)."""

    title = "identifier match"
    sections: ClassVar = {"Scores": 1.2, "headline": 2.3, "figures": 3.5}

    def sample(self, completion: Completion) -> float:
        found, wanted = (identifiers(code, completion.language) for code in (completion.text, completion.reference))
        return float(found == wanted)


class IdentifierF1(_OfCrossCodeEval):
    """Names of a statement against the reference's, F1 over the different ones (CrossCodeEval)."""

    title = "identifier F1"
    decides = False
    sections: ClassVar = {"Scores": 1.3, "figures": 4.5}

    def sample(self, completion: Completion) -> float:
        """Return F1; 0 where neither has a name, as officially."""
        found, wanted = (
            set(identifiers(code, completion.language)) for code in (completion.text, completion.reference)
        )
        return 2 * len(found & wanted) / (len(found) + len(wanted)) if found or wanted else 0.0


class IndentedSimilarity(Score):
    """Edit similarity with outer white space, so that wrong indentation costs (RepoBench)."""

    title = "edit similarity, indented"
    decides = False
    sections: ClassVar = {"Scores": 0.5}

    def judges(self, completion: Completion) -> bool:
        return completion.protocol == "repobench"

    def sample(self, completion: Completion) -> float:
        return edit_similarity(completion.text, completion.reference, strip=False) / 100


def _lines(code: str) -> list[str]:
    return [line.strip() for line in code.split("\n") if line.strip()]
