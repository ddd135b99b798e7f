"""OpenAI's dialect: completions, the ones before chat, which editors use.

Texts that end a completion are omitted from it. ``n`` choices are copies of one, since decoding is greedy. Each choice
has ``exit_layers``; ``x_early_exit`` stands at the top of an answer to one prompt, in every choice, and in a stream
with the ending of each choice. Errors are also where llm-ls looks for them, in ``detail``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, ValidationInfo, WithJsonSchema

from harness.decoding.generation import Token
from harness.serving.completions import Finished, InvalidRequestError, ServingError, Wanted, early_exit_report
from harness.serving.dialects.dialect import (
    Dialect,
    Flag,
    Limit,
    Prompts,
    Seed,
    Text,
    Texts,
    finite,
    read_object,
    refused,
    token_report,
    whole_number,
)

MAX_COPIES = 16


def _logprobs(value: object, info: ValidationInfo) -> int:
    """Return how many log probabilities are asked for; -1 where none are, 0 for those of the tokens alone."""
    if isinstance(value, bool) or value is None:
        return 1 if value else -1
    number = whole_number(value)
    if number is None:
        raise refused(info.field_name, value, "a whole number")
    return number


def _copies(value: object, info: ValidationInfo) -> int:
    number = 1 if value is None else whole_number(value)
    if number is None or number < 1:
        raise refused(info.field_name, value, "a whole number" if number is None else "a whole number from 1")
    return min(number, MAX_COPIES)


class StreamOptions(BaseModel):
    """``stream_options`` of a request."""

    include_usage: Annotated[Flag, Field(description="true: a last event with usage.")] = False


class OpenAI(Dialect):
    """A request to OpenAI's completions.

    Without ``max_tokens`` the server's cap applies, not OpenAI's 16: editors expect whole lines, and a trial with
    ``curl`` should not show a truncated completion.
    """

    client = "OpenAI"
    paths: ClassVar = {
        "/v1/completions": "Complete one text or several; events where ``stream`` is true.",
        "/completions": "The same, for clients whose base address lacks ``/v1``.",
    }
    prefixes = ("/v1/",)
    answers = "OpenAI's; as events one for each token and each ending, then [DONE]"
    closing = b"data: [DONE]\n\n"
    reasons = ("stop", "stop", "length")

    prompt: Annotated[Prompts, Field(description="Text before the cursor, or its token ids, or a list of either.")]
    suffix: Annotated[Text, Field(description="Text after the cursor.")] = None
    max_tokens: Annotated[Limit, Field(description="Limit of new tokens, from 1; default: the server's cap.")] = None
    stop: Annotated[Texts, Field(description="A text or a list; omitted from the completion.")] = ()
    stream: Annotated[Flag, Field(description="true: server-sent events.")] = False
    stream_options: Annotated[StreamOptions, read_object] = StreamOptions()
    echo: Annotated[Flag, Field(description="true: begin the text with the prompt, which must be text.")] = False
    logprobs: Annotated[
        int,
        BeforeValidator(_logprobs),
        WithJsonSchema({"type": ["integer", "boolean", "null"]}),
        Field(description="A number: log probabilities of the chosen tokens; from 1 on as top_logprobs too."),
    ] = -1
    seed: Seed = 0
    n: Annotated[
        int,
        BeforeValidator(_copies),
        WithJsonSchema({"type": ["integer", "null"], "minimum": 1}),
        Field(description=f"Choices for each prompt: identical copies, {MAX_COPIES} at most."),
    ] = 1

    _id: str = PrivateAttr(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    _created: int = PrivateAttr(default_factory=lambda: int(time.time()))
    _sent: dict[int, int] = PrivateAttr(default_factory=dict)  # place of a prompt → characters of its text
    _endings: list[Finished] = PrivateAttr(default_factory=list)

    def wanted(self) -> list[Wanted]:
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise InvalidRequestError("echo = true needs a prompt that is text, not token ids.")
        return [
            Wanted(prompt, self.suffix, self.max_tokens, self.stop, early_exit=self.early_exit, seed=self.seed)
            for prompt in self.prompt
        ]

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        text, offset = self._next(place, token.text)
        return self._copied(place, text, None, self._said([token], "", offset), token_report(token))

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        self._endings.append(done)
        text, _ = self._next(place, done.rest)
        nothing = {"exit_layer": None, "drafted_at": None, "accepted": None}
        events = self._copied(place, text, self.reason(done.ending), None, nothing)
        events = [event | {"x_early_exit": early_exit_report(done)} for event in events]
        if self.stream_options.include_usage and len(self._endings) == len(self.prompt):
            events.append(self._head() | {"choices": [], "usage": self._usage(self._endings)})
        return events

    def whole(self, endings: Sequence[Finished]) -> dict[str, Any]:
        reports = [early_exit_report(done) for done in endings]
        choices = [
            {
                "text": self._begin(place) + done.text,
                "index": place * self.n + copy,
                "finish_reason": self.reason(done.ending),
                "logprobs": self._said(done.tokens, done.rest, len(self._begin(place))),
                "exit_layers": reports[place]["exit_layers"],
                "x_early_exit": reports[place],
            }
            for place, done in enumerate(endings)
            for copy in range(self.n)
        ]
        return self._head() | {
            "choices": choices,
            "usage": self._usage(endings),
            "x_early_exit": reports[0] if len(reports) == 1 else None,
        }

    @classmethod
    def error(cls, message: str, error: ServingError) -> dict[str, Any]:
        return {
            "error": {"message": message, "type": error.kind, "param": None, "code": error.status},
            "detail": [{"loc": "body", "msg": message, "type": error.kind}],
        }

    def _head(self) -> dict[str, Any]:
        model = self._service.model_name
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": model}

    def _begin(self, place: int) -> str:
        return self.prompt[place] if self.echo else ""

    def _next(self, place: int, text: str) -> tuple[str, int]:
        """Return what is sent of a completion's text next, and where that of the engine begins in all of it."""
        begin = "" if self._sent.get(place) else self._begin(place)
        offset = self._sent.get(place, 0) + len(begin)
        self._sent[place] = offset + len(text)
        return begin + text, offset

    def _copied(
        self, place: int, text: str, reason: str | None, logprobs: dict[str, Any] | None, facts: dict[str, Any]
    ) -> list[dict[str, Any]]:
        usage = {"usage": None} if self.stream_options.include_usage else {}
        choice = {"text": text, "finish_reason": reason, "logprobs": logprobs, **facts}
        indices = range(place * self.n, (place + 1) * self.n)
        return [self._head() | {"choices": [{"index": index, **choice}]} | usage for index in indices]

    def _usage(self, endings: Sequence[Finished]) -> dict[str, Any]:
        read = sum(done.prompt_tokens for done in endings)
        made = sum(done.new_tokens for done in endings) * self.n
        return {
            "prompt_tokens": read,
            "prompt_tokens_details": {"cached_tokens": sum(done.prompt_reused for done in endings)},
            "completion_tokens": made,
            "total_tokens": read + made,
        }

    def _said(self, tokens: Sequence[Token], rest: str, offset: int) -> dict[str, Any] | None:
        """Return the log probabilities of tokens; what was held back until the ending is the last one's."""
        if self.logprobs < 0 or not tokens:
            return None
        pieces = [token.text for token in tokens]
        pieces[-1] += rest
        values = [finite(token.logprob) for token in tokens]
        return {
            "tokens": pieces,
            "token_logprobs": values,
            "top_logprobs": [{piece: value} for piece, value in zip(pieces, values, strict=True)]
            if self.logprobs
            else None,
            "text_offset": [offset + sum(map(len, pieces[:place])) for place in range(len(pieces))],
        }
