"""A completion ends with its line; and the language that a stop rule reads, its own option or the task's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from harness.contracts import Cursor, ModelInfo, RowStop, Stop, Tokenizer
from harness.errors import OptionError, did_you_mean
from tasks import languages
from tasks.languages import Language


def language_of(rule: str, option: str, language: str, known: Collection[str]) -> str:
    """Return the language of the code."""
    found = option or language
    names = ", ".join(sorted(known))
    if not found:
        raise OptionError(
            f"the stop rule '{rule}' must know the language of the code. Write {rule}:language=NAME, one of: {names}."
        )
    if found not in known:
        raise OptionError(
            f"the stop rule '{rule}' has no grammar of {found}.{did_you_mean(found, known)} It reads: {names}. "
            "Use another rule (harness list stops)."
        )
    return found


KNOWN = {one.name: one for one in vars(languages).values() if isinstance(one, Language)}


@dataclass(frozen=True)
class Line(Stop):
    """End a completion with the line that the cursor stands in.

    A line is CodeXGLUE's (:mod:`tasks.languages`): up to a newline, in Java also up to the first ``;`` or ``}``, or
    before ``{``, outside literals and comments; the cursor may stand inside one. It is the rule by which the protocol
    ``codexglue-line`` ends completions of itself.
    """

    language: Annotated[str, Field(description="of the code; the task's where it is left out")] = ""

    def check(self, model: ModelInfo, language: str) -> None:
        language_of("line", self.language, language, KNOWN)

    def start(self, cursor: Cursor) -> RowStop:
        language = KNOWN[self.language or cursor.language]
        return LineEnd(language, cursor.tokenizer, language.open_line(cursor.before))


class LineEnd(RowStop):
    """Tells whether the line has ended; one object may serve several completions.

    An end mark may span tokens, so the text of all tokens is searched; but only when some token holds a character that
    can complete a mark, which one dictionary look-up per token tells.

    Args:
        language: of the code.
        tokenizer: spells tokens.
        before: the line up to the cursor (:meth:`Language.open_line`); not needed where no literal or comment is open.

    Attributes:
        name: what records call it.
    """

    name: ClassVar[str] = "line"

    def __init__(self, language: Language, tokenizer: Tokenizer, before: str = "") -> None:
        self._language, self._tokenizer, self._before = language, tokenizer, before
        self._suspects: dict[int, bool] = {}

    def __call__(self, token_ids: Sequence[int]) -> bool:
        return self.over(token_ids)

    def over(self, token_ids: Sequence[int]) -> bool:
        suspicious = False
        for token_id in token_ids:
            known = self._suspects.get(token_id)
            if known is None:
                spelled = self._tokenizer.decode([token_id])
                known = self._suspects[token_id] = self._language.may_end_line(spelled)
            suspicious = suspicious or known
        return suspicious and self._language.line_end(self._before + self._tokenizer.decode(token_ids)) is not None
