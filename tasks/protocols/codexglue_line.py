"""CodeXGLUE's line-level code completion: finish the line, judged by exact match and edit similarity.

Source: Lu et al., "CodeXGLUE", 2021, arXiv 2102.04664; microsoft/CodeXGLUE, Code-Code/CodeCompletion-line, commit
0401a76: ``code/dataset.py`` (class ``lineDataset``: the prompt is ``input`` as it stands, ``<s>`` and ``<EOL>``
included, cut on the left to its last 1024 − 100 tokens), ``code/run_lm.py`` (``eval_line_completion``: at most 100 new
tokens; break at ``<EOL>``, or for Java at ``Ġ;``, ``Ġ}``, ``Ġ{``), ``evaluator/evaluator.py`` (see
:mod:`tasks.scores.match`).

Deviations: decoding is the run's own (greedy), not beam search of width 5; line ends are read from the text, since a
model's tokenizer need not have CodeXGLUE's special tokens (see :mod:`tasks.languages`); where the official code strips
any of the letters ``<EOL>`` from both ends of a prediction, the text is cut at the mark.

A raw document (``{id, code}`` or an embedded source file) has no official prompt. It is cut here, as CodeXGLUE cut its
own test set, at a random token of a random line, but behind the first fifth of the file: its beginning is imports and
licences, and has no context. Lines that are, or touch, a comment or a string that spans lines are left out, as are
lines of fewer than three tokens and answers without a single name, number or string: completing those measures prose
or luck.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import ClassVar

from harness.contracts import BadRow, Document, Sample, SessionRequest, StopRule, TaskRequest, Tokenizer
from tasks.languages import MIN_TOKENS, Language
from tasks.protocols import Protocol, Skipped, too_long
from tasks.rows import LineRow, TraceRow, whole
from tasks.sessions import session_samples, typed
from tasks.stops.line import LineEnd

_WORD = re.compile(r"\w")
CONTEXT = 0.2
"""Share of a document before the first line that may be cut."""


def cut_line(text: str, language: Language, chance: random.Random) -> tuple[str, str] | None:
    """Return the text before a random cut and the rest of the line, or ``None`` when no line can be cut.

    The line begins behind the first fifth of the text.

    The cut lies behind a token, so the rest begins with the white space that a tokenizer would put into its first
    token. The rest ends where :meth:`Language.line_end` says.
    """
    first = CONTEXT * len(text)
    lines = [line for line in language.code_lines(text) if len(line) >= MIN_TOKENS and line[0].start >= first]
    chance.shuffle(lines)
    for line in lines:
        cuts = [token.end for token in line[:-1]]
        chance.shuffle(cuts)
        for cut in cuts:
            end = language.line_end(text, cut)
            rest = text[cut:end]
            if _WORD.search(rest):
                return text[:cut], rest
    return None


NEW_TOKENS = 100
"""Limit of a completion, tokens, unless the request overrides it."""

MAX_CONTEXT = 1024 - NEW_TOKENS
"""Longest prompt, tokens; the official code keeps the last ones."""

_NO_ANSWER = (
    "'gt' is empty, the answer is withheld as in CodeXGLUE's test set; use rows with answers, such as its dev set, or "
    "--protocol green-code"
)


class CodexglueLine(Protocol[Document | LineRow]):
    """Prompt: the code up to somewhere in a line. Reference: the rest of that line."""

    new_tokens: ClassVar[int] = NEW_TOKENS
    wants: ClassVar[str] = "lines"
    origins: ClassVar[Mapping[type, str]] = {
        Document: "document cut by the harness at a seeded token of a seeded line",
        LineRow: "input and gt as given",
    }

    def sample(self, row: Document | LineRow, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        """Encode the prompt and keep its last 924 tokens; cut a document first."""
        if isinstance(row, LineRow):
            if not row.answer.strip():
                return BadRow(row.sample_id, f"row {row.number}: {_NO_ANSWER}")
            prompt, rest = row.prompt, row.answer if row.prompt[-1].isspace() else " " + row.answer
        else:
            chance = random.Random(f"line of {row.sample_id}, seed {request.seed}")
            pieces = cut_line(row.text, self.language, chance)
            if pieces is None:
                return Skipped("document without a line to complete")
            prompt, rest = pieces
        new = self.limit(request)
        prompt_ids = tuple(tokenizer.encode(prompt)[-MAX_CONTEXT:])
        if not prompt_ids:
            return BadRow(row.sample_id, f"row {row.number}: the tokenizer makes no token of the prompt")
        if bad := too_long(row, len(prompt_ids), new, request):
            return bad
        return Sample(row.sample_id, prompt_ids, rest.strip(), tuple(tokenizer.encode(rest.rstrip())), new)

    def session(
        self, row: Document | LineRow | TraceRow, tokenizer: Tokenizer, request: TaskRequest, session: SessionRequest
    ) -> tuple[Sample, ...] | BadRow | Skipped:
        """Return the session of a document that is typed, or of a trace; one with a single request is none."""
        if isinstance(row, TraceRow):
            trace = row.requests
        else:
            chance = random.Random(f"session of {row.sample_id}, seed {request.seed}")
            trace = typed(whole(row), self.language, session.requests, chance)
            if sum(asked.after_s is None for asked in trace) < 2:
                return Skipped("document with too few lines for a session")
        return session_samples(trace, row, self.language, tokenizer, request, session, self.limit(request))

    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        return LineEnd(self.language, tokenizer)

    def completion(self, text: str) -> str:
        return self.language.line(text)
