"""The contract of a score: how good a completion is, held against its reference."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from harness.registry import SCORES

Pair = tuple[str, str]
"""A completion's text and its reference."""

_LINE_END = re.compile(r"\n|\r|<EOL>")
"""``<EOL>`` ends a line in CodeXGLUE's rows."""


def first_line(text: str) -> str:
    """Return the first line of a completion that holds more than white space; empty where none does."""
    return next((line for line in _LINE_END.split(text) if line.strip()), "")


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion beside its reference.

    Attributes:
        text: the completion, cut as its protocol cuts it.
        reference: the ground truth.
        token_ids: generated tokens.
        reference_ids: ground-truth tokens.
        language: of the code, for example ``python``.
        protocol: registered name of the protocol that cut the text; empty where that is not known.
        around, tests: the sample's, see :class:`harness.contracts.Sample`.
    """

    text: str
    reference: str
    token_ids: Sequence[int]
    reference_ids: Sequence[int]
    language: str
    protocol: str = ""
    around: tuple[str, str] = ("", "")
    tests: str = ""


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many items, or characters, two sequences begin with alike."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


class Score:
    """One score; subclass it, and define :meth:`sample`, :meth:`corpus` or both.

    A registered score is a class without arguments. Its name is that of its entry point, and the first line of its
    docstring says what it is, in one phrase.

    Attributes:
        title: what a table calls it.
        unit: of the values; empty for a fraction, 0…1.
        better: which direction is the better one.
        decides: whether a fall of it is a loss of quality in verdicts and between runs.
        sections: where tables and figures show it besides among the scores: section → place, as in
            :attr:`harness.contracts.Metric.sections`. One with a place in ``Scores`` itself comes before the others
            there, and its difference to full depth stands among the main comparisons.
        languages: the languages of code that it can judge; empty for all.
    """

    title: ClassVar[str]
    unit: ClassVar[str] = ""
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    decides: ClassVar[bool] = True
    sections: ClassVar[Mapping[str, float]] = {"headline": 2.5, "figures": 6}
    languages: ClassVar[frozenset[str]] = frozenset()

    def unavailable(self) -> str | None:
        """Return why this installation cannot compute the score, with the command that helps; ``None`` if it can."""
        return None

    def sample(self, completion: Completion) -> float | None:
        """Return the score of one completion; ``None`` where it is not defined."""
        raise NotImplementedError

    def corpus(self, pairs: Sequence[Pair], language: str) -> float | None:
        """Return the score of one completion or more together; ``None`` where it is not defined.

        A score without this is the mean over its samples.
        """
        raise NotImplementedError

    @property
    def judges_all(self) -> bool:
        """Whether it judges every completion; tables do not name the others where none was judged."""
        return type(self).judges is Score.judges

    @property
    def scores_samples(self) -> bool:
        """Whether it is defined for one completion."""
        return type(self).sample is not Score.sample

    @property
    def scores_corpora(self) -> bool:
        """Whether it is defined for completions together other than as the mean over samples."""
        return type(self).corpus is not Score.corpus

    @property
    def meaning(self) -> str:
        """Description in one phrase: the first line of its docstring."""
        return (inspect.getdoc(type(self)) or "").partition("\n")[0].rstrip(".")

    def judges(self, completion: Completion) -> bool:
        """Return whether it says anything of one completion: a score that tests run says nothing without tests.

        A completion that it does not judge has no place for it, in records and tables; one that it judges and that has
        no value has ``None`` there.
        """
        return True

    def allows(self, value: float) -> bool:
        """Return whether a value can be one of its: one without a unit is a fraction, 0…1."""
        return bool(self.unit) or 0.0 <= value <= 1.0

    def applies_to(self, language: str) -> bool:
        """Whether it can judge code of a language."""
        return not self.languages or language in self.languages


@cache
def registered_scores() -> Mapping[str, Score]:
    """Return every registered score by its name, but for those of plug-ins that cannot be made."""
    found: dict[str, Score] = {}
    for name, kind in SCORES.usable().items():
        with SCORES.leaving_out(name):
            found[name] = kind()
    return found
