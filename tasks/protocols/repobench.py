"""RepoBench's next line: pieces of other files, then the file itself up to the line.

Source: Liu, Xu, McAuley, 2023, arXiv 2306.03091; Leolty/repobench, commit 630c865: ``data/utils.py`` (the prompt: other
files first, whose lines go from the end where prompt and limit do not fit; runs of empty lines shrink), ``run.py`` (15
800 tokens, 128 new ones; levels up to 16k; December 2023; of the generated text the first line that is no comment).

Deviations: decoding is the run's own (greedy), not sampling at temperature 0.2; where the model covers fewer positions,
they are the limit instead of 15 800; where the file alone is longer than that, its last tokens are kept (there it is
not cut); generation ends with the line, which changes nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from harness.contracts import BadRow, Sample, StopRule, TaskRequest, Tokenizer
from tasks.protocols import Protocol, Skipped, too_long
from tasks.rows import GapRow

NEW_TOKENS = 128
"""Limit of a completion, tokens, unless the request overrides it."""

PROMPT_TOKENS = 15_800
"""Longest prompt, tokens, where the model covers as many."""

_LEVELS = frozenset({"2k", "4k", "8k", "12k", "16k"})
_MONTH = "2023-12"
_EMPTY_LINES = re.compile(r"\n{4,}")
_COMMENTS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "python": ("#", ('"""', "'''"), ('"""', "'''")),
    "java": ("//", ("/*",), ("*/",)),
}
"""Language → what begins a comment of one line; what begins and what ends one of several."""


def repository_prompt(row: GapRow, comment: str, count: Callable[[str], int], limit: int) -> str:
    """Return the official prompt.

    Args:
        row: with the facts repo_name, file_path and import_statement.
        comment: what begins a comment of one line.
        count: returns the number of tokens of a text.
        limit: tokens that other files and this one may have together; only the others give way.
    """
    others = f"{comment} Repo Name: {row.facts['repo_name']}\n" + "".join(
        f"{comment} Path: {fragment.path}\n{fragment.text}\n\n" for fragment in row.fragments
    )
    own = f"{comment} Path: {row.facts['file_path']}\n{row.facts['import_statement']}\n{row.before.rstrip()}\n"
    excess = count(others) + count(own) - limit
    if excess > 0:
        lines = others.split("\n")
        kept = len(lines)
        while kept and excess >= 0:
            kept -= 1
            excess -= count(lines[kept])
        others = "\n".join(lines[:kept]) + "\n\n"
    return _EMPTY_LINES.sub("\n\n", others + own)


class RepoBench(Protocol[GapRow]):
    """Prompt: pieces of other files and the file up to a line. Reference: that line."""

    new_tokens: ClassVar[int] = NEW_TOKENS
    wants: ClassVar[str] = "repobench"
    origins: ClassVar[Mapping[type, str]] = {GapRow: "other files, then the file up to the line"}

    def sample(self, row: GapRow, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        """Lay out the prompt; a row outside December 2023, or beyond level 16k, is skipped."""
        if row.facts["level"] not in _LEVELS:
            return Skipped("beyond level 16k")
        if not row.facts["created_at"].startswith(_MONTH):
            return Skipped("not of December 2023")
        if not row.answer.strip():
            return BadRow(row.sample_id, f"row {row.number}: 'next_line' is empty")
        new = self.limit(request)
        limit = PROMPT_TOKENS if request.max_positions is None else min(PROMPT_TOKENS, request.max_positions - new)
        if limit < 1:
            return too_long(row, 1, new, request) or Skipped("no room for a prompt")
        comment = _COMMENTS[self.language.name][0]
        prompt = repository_prompt(row, comment, lambda text: len(tokenizer.encode(text)), limit)
        prompt_ids = tuple(tokenizer.encode(prompt)[-limit:])
        return Sample(row.sample_id, prompt_ids, row.answer, tuple(tokenizer.encode(row.answer)), new)

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:

        def line_is_over(token_ids: Sequence[int]) -> bool:
            return "\n" in tokenizer.decode(token_ids[-1:]) and self._line(tokenizer.decode(token_ids))[1]

        return line_is_over

    def completion(self, text: str) -> str:
        """Return the first line that is neither empty nor a comment, else the first one; indentation is kept."""
        return self._line(text)[0]

    def _line(self, text: str) -> tuple[str, bool]:
        """Return that line and whether it is over. A comment of several lines on one line hides those after it, too."""
        comment, opening, closing = _COMMENTS[self.language.name]
        lines = text.lstrip("\n").split("\n")
        inside = False
        for place, line in enumerate(lines):
            bare = line.strip()
            if not bare:
                continue
            if inside:
                inside = not bare.endswith(closing)
            elif bare.startswith(opening):
                inside = True
            elif not bare.startswith(comment):
                return line, place < len(lines) - 1
        return lines[0], False
