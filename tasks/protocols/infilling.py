"""Filling a gap: code before and after it, between the tokens a model was trained with; or the code before it alone.

Source: Bavarian et al., 2022, arXiv 2207.14255; openai/human-eval-infilling, commit 88062ff: a row has ``prompt`` and
``suffix``, and a completion goes between them as it is. How the two are shown to a model is the model's business: here
by its own fill-in-the-middle tokens (:mod:`harness.models.fill_in_the_middle`), prefix first.

Left context alone has no official form. A model that sees no suffix writes it anew, so its text ends where the first
line of the suffix begins. Results of the two protocols are never one table's: they bear their protocols' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from harness.contracts import BadRow, Sample, StopRule, TaskRequest, Tokenizer
from harness.errors import ConfigError
from harness.models.fill_in_the_middle import FAMILIES, FillInTheMiddle, encode_inside, fill_in_the_middle
from tasks.protocols import Protocol, Skipped, never, too_long
from tasks.rows import GapRow

NEW_TOKENS = 256
"""Limit of a completion, tokens, unless the request overrides it; the benchmark sets none."""

_ENDS = tuple({spelled for family in FAMILIES for end in family.ends for spelled in (end, end.replace("▁", " "))})
"""As vocabularies have them, and as SentencePiece's tokenizers spell them."""


def markers(tokenizer: Tokenizer, instead: str) -> FillInTheMiddle:
    """Return how a model's tokenizer marks the middle."""
    found = fill_in_the_middle(tokenizer)
    if found is None:
        raise ConfigError(
            "this model has no fill-in-the-middle tokens, so it cannot be shown what comes after a gap. Use a model "
            f"that has (StarCoder, Qwen2.5-Coder, CodeLlama, DeepSeek-Coder), or --protocol {instead}: left context "
            "alone, and labelled so."
        )
    return found


def stop_at_the_end(tokenizer: Tokenizer) -> StopRule:
    """Return a rule that is true at a token that ends a middle; never where the model has none."""
    found = fill_in_the_middle(tokenizer)
    ends = frozenset() if found is None else found.end_token_ids
    return lambda token_ids: token_ids[-1] in ends if token_ids else False


def without_end(text: str) -> str:
    """Return text without the token that ended it."""
    return next((text.removesuffix(end) for end in _ENDS if text.endswith(end)), text)


class _Gap(Protocol[GapRow]):
    """The base of both ways: the tests, and nothing stops but an end or the limit."""

    new_tokens: ClassVar[int] = NEW_TOKENS
    wants: ClassVar[str] = "infilling"

    def _sample(
        self, row: GapRow, prompt_ids: Sequence[int], tokenizer: Tokenizer, request: TaskRequest
    ) -> Sample | BadRow:
        new = self.limit(request)
        if bad := too_long(row, len(prompt_ids), new, request):
            return bad
        tests = f"{row.facts['test']}\ncheck({row.facts['entry_point']})" if request.allow_code_execution else ""
        return Sample(
            row.sample_id,
            tuple(prompt_ids),
            row.answer,
            tuple(encode_inside(tokenizer, row.answer)),
            new,
            around=(row.before, row.after),
            tests=tests,
        )


class Infilling(_Gap):
    """Prompt: code before and after a gap, by the model's own fill-in-the-middle tokens. Reference: the gap."""

    origins: ClassVar[Mapping[type, str]] = {GapRow: "prefix and suffix between the model's markers"}

    def sample(self, row: GapRow, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        marked = markers(tokenizer, "infilling-left")
        prompt_ids = marked.token_ids(tokenizer.encode(row.before), encode_inside(tokenizer, row.after))
        return self._sample(row, prompt_ids, tokenizer, request)

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        return stop_at_the_end(tokenizer)

    def completion(self, text: str) -> str:
        """Return the text up to the token that ended it, white space included."""
        return without_end(text)


class InfillingLeft(_Gap):
    """Prompt: code before a gap alone, for models without tokens to show what follows. Reference: the gap."""

    origins: ClassVar[Mapping[type, str]] = {GapRow: "prefix alone: left context"}

    def sample(self, row: GapRow, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        prompt_ids = tokenizer.encode(row.before)
        if not prompt_ids:
            return BadRow(row.sample_id, f"row {row.number}: nothing stands before the gap")
        return self._sample(row, prompt_ids, tokenizer, request)

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        return never

    def completion(self, text: str) -> str:
        return text

    def completion_between(self, before: str, text: str, after: str) -> str:
        """Return the text up to where the first line after the gap begins; all of it where it does not come.

        What surely is a whole line, since a line break stands before it, is looked for where lines begin. A gap that
        begins a line is most likely one of whole lines: an indented line is not the end of one that is indented deeper.
        Where the gap begins inside a line, what follows may as well be the rest of one, of its indentation, too.
        """
        following = next((line for line in after.splitlines(keepends=True) if line.strip()), "")
        if not following:
            return text
        before_it = ""
        if not after.startswith(following):
            before_it = "^"
        elif before[-1:] in ("", "\n") and following[0].isspace():
            before_it = r"(?<![ \t])"
        found = re.search(before_it + re.escape(following), text, re.MULTILINE)
        return text[: found.start()] if found else text
