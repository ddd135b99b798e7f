"""CrossCodeEval's statements: retrieved pieces of other files as comments, then the file up to the gap.

Source: Ding et al., NeurIPS 2023, arXiv 2310.11248; amazon-science/cceval, commit 25f9cab: ``scripts/eval.py`` (at most
512 tokens of other files, whole pieces as long as they fit; with the file, which loses its beginning, 2048 − 50; 50 new
tokens), ``scripts/eval_utils.py`` and ``eval_metric.py`` (a completion ends with its statement: at the first ``;``,
``}`` or ``{``, or for Python at the first line end where the file up to there parses; both texts lose their comments).

Kept as they are there: a mark that is the very first character ends nothing; ``#`` and ``//`` begin a comment in every
language, also inside a string. Deviations: decoding is the run's own (greedy), not sampling at temperature 0.2; where
the model covers fewer positions, they are the limit instead of 2048; Python is parsed by the grammar in use here; a
completion of other languages than Python is not decoded beyond the mark that ends it.

``crosscodeeval-fim`` adds what the dataset has and the authors' scripts do not show: the code after the gap
(``right_context``), by the model's own fill-in-the-middle tokens. Its results are not those of the paper's setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from harness.contracts import BadRow, Sample, StopRule, TaskRequest, Tokenizer
from harness.models.fill_in_the_middle import encode_inside
from tasks.protocols import Protocol, Skipped, never, too_long
from tasks.protocols.infilling import markers, stop_at_the_end, without_end
from tasks.rows import GapRow

NEW_TOKENS = 50
"""Limit of a completion, tokens, unless the request overrides it."""

FILE_TOKENS = 2048
"""Prompt and completion together, tokens, where the model covers as many."""

OTHER_TOKENS = 512
"""Of them for other files, at most."""

_MARKS = frozenset(";{}")
_COMMENT = re.compile(r"(?:#|//).*")


def statement(before: str, text: str, language: str) -> str:
    """Return the statement that generated text begins with, all of it where none ends.

    Args:
        before: the file up to the gap.
        text: what was generated.
        language: ``python``, or one of braces.
    """
    if language != "python":
        end = next((place for place, character in enumerate(text) if character in _MARKS), 0)
        return text[: end + 1] if end else text
    for found in re.finditer("\n", text):
        if found.start() and _parses(before + text[: found.start()]):
            return text[: found.start()].rstrip()
    return text


def without_comments(text: str) -> str:
    """Return text without what the official scorer takes for comments."""
    return _COMMENT.sub("", text)


def _parses(code: str) -> bool:
    from tasks.languages import parser

    return "(ERROR" not in str(parser("python").parse(code.encode()).root_node)


class CrossCodeEval(Protocol[GapRow]):
    """Prompt: pieces of other files and the file up to a gap. Reference: the rest of the statement."""

    new_tokens: ClassVar[int] = NEW_TOKENS
    wants: ClassVar[str] = "crosscodeeval"
    origins: ClassVar[Mapping[type, str]] = {GapRow: "other files as comments, then the file up to the gap"}

    def sample(self, row: GapRow, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        new = self.limit(request)
        longest = FILE_TOKENS if request.max_positions is None else min(FILE_TOKENS, request.max_positions)
        if longest <= new:
            return too_long(row, 1, new, request) or Skipped("no room for a prompt")
        prompt_ids = self._prompt(row, tokenizer, longest - new)
        reference = without_comments(row.answer)
        if not reference.strip():
            return BadRow(row.sample_id, f"row {row.number}: 'groundtruth' holds nothing but a comment")
        return Sample(
            row.sample_id,
            tuple(prompt_ids),
            reference,
            tuple(encode_inside(tokenizer, row.answer)),
            new,
            around=(row.before, row.after),
        )

    def _prompt(self, row: GapRow, tokenizer: Tokenizer, room: int) -> list[int]:
        others = self._others(row, tokenizer, room)
        return [*others, *tokenizer.encode(row.before)[-max(1, room - len(others)) :]]

    def _others(self, row: GapRow, tokenizer: Tokenizer, room: int) -> list[int]:
        """Return the tokens of the pieces that fit, best first, as comments."""
        sign = "#" if self.language.name == "python" else "//"
        head = f"{sign} Here are some relevant code fragments from other files of the repo:\n\n"
        most = min(OTHER_TOKENS, room // 2)
        used, taken = len(tokenizer.encode(head)), ""
        for fragment in row.fragments:
            lines = "\n".join(f"{sign} {line}" for line in fragment.text.split("\n") if line)
            piece = f"{sign} the below code fragment is found in {fragment.path}\n{lines}\n\n"
            used += len(tokenizer.encode(piece))
            if used > most:
                break
            taken += piece
        return tokenizer.encode(head + taken)[:most] if taken else []

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        """Return a rule that is true once a mark has ended the statement; Python runs to the limit, as officially."""
        if self.language.name == "python":
            return never

        def statement_is_over(token_ids: Sequence[int]) -> bool:
            if not token_ids or _MARKS.isdisjoint(tokenizer.decode(token_ids[-1:])):
                return False
            text = tokenizer.decode(token_ids)
            return text[:1] not in _MARKS and not _MARKS.isdisjoint(text)

        return statement_is_over

    def completion(self, text: str) -> str:
        return self.completion_between("", text, "")

    def completion_between(self, before: str, text: str, after: str) -> str:
        return without_comments(statement(before, text, self.language.name))


class CrossCodeEvalFim(CrossCodeEval):
    """As crosscodeeval, with the code after the gap too, by the model's own fill-in-the-middle tokens."""

    origins: ClassVar[Mapping[type, str]] = {GapRow: "other files, prefix and suffix between the model's markers"}

    def _prompt(self, row: GapRow, tokenizer: Tokenizer, room: int) -> list[int]:
        marked = markers(tokenizer, "crosscodeeval")
        others = self._others(row, tokenizer, room)
        before_ids, after_ids = tokenizer.encode(row.before), encode_inside(tokenizer, row.after)
        before, after = marked.fit(before_ids, after_ids, room - len(others))
        return marked.token_ids([*others, *before], after)

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        ended, over = stop_at_the_end(tokenizer), super().stop_rule(tokenizer)
        return lambda token_ids: ended(token_ids) or over(token_ids)

    def completion_between(self, before: str, text: str, after: str) -> str:
        return super().completion_between(before, without_end(text), after)
