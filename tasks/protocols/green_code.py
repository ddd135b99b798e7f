"""The protocol of GREEN-CODE: the next 15 tokens of a source file.

Source: Ilager et al., "GREEN-CODE: Learning to Optimize Energy Efficiency in LLM-based Code Generation", 2025,
section VI-C, and the authors' ``src/eval/evaluator.py`` (Large-scale-Sustainable-Computing-LSC/green-code, commit
a9e8377). It is not line completion: nothing stops at a line's end, and the reference may begin inside a token
of the language.

Deviations from the published code: a context longer than 512 tokens keeps exactly 512 (there it falls to
512 − 1 − 15), the token that a tokenizer begins a text with before them; documents too short for a full reference are
skipped (there they are scored on what is left). All references are the same for every
operating point, which they were not in the published Python runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from harness.contracts import BadRow, Document, Sample, StopRule, TaskRequest, Tokenizer
from harness.contracts.stops import spelled_behind
from tasks.protocols import Protocol, Skipped, never, too_long
from tasks.rows import LineRow, whole

CONTEXT_PART = 5
"""The context is the first fifth (20 %) of a document's tokens, rounded down."""

MAX_CONTEXT = 512
"""Longest context, tokens."""

NEW_TOKENS = 15
"""Length of the reference and limit of the completion, tokens, unless the request overrides it."""


class GreenCode(Protocol[Document | LineRow]):
    """Context: the first 20 % of a document's tokens, at most 512. Reference: the next 15 tokens."""

    new_tokens: ClassVar[int] = NEW_TOKENS
    wants: ClassVar[str] = "documents"
    origins: ClassVar[Mapping[type, str]] = {Document: "document", LineRow: "document rebuilt from input and gt"}

    def sample(self, row: Document | LineRow, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        """Tokenise the whole document and split it; a document that is too short is skipped."""
        new = self.limit(request)
        token_ids = tokenizer.encode(whole(row))
        context = min(len(token_ids) // CONTEXT_PART, MAX_CONTEXT)
        if context < 1 or len(token_ids) < context + new:
            return Skipped(f"document too short for a context and {new} further tokens")
        if bad := too_long(row, context, new, request):
            return bad
        reference_ids = tuple(token_ids[context : context + new])
        return Sample(
            sample_id=row.sample_id,
            prompt_ids=tuple(token_ids[:context]),
            reference=spelled_behind(tokenizer, token_ids[:context], reference_ids),
            reference_ids=reference_ids,
            max_new_tokens=new,
        )

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        return never

    def completion(self, text: str) -> str:
        return text
