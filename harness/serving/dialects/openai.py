"""OpenAI's dialect: completions, which editors use, and chat completions.

``n`` choices are copies of one, since decoding is greedy. ``x_early_exit`` stands in every choice, at the top of an
answer to one prompt, and in a stream with the ending of each choice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PrivateAttr, WithJsonSchema

from harness.decoding.generation import Token
from harness.serving.completions import Echoed, Finished, InvalidRequestError, Job, ServingError, early_exit_report
from harness.serving.dialects.dialect import (
    PENALTIES,
    SAMPLING,
    Dialect,
    Fields,
    Flag,
    Prompts,
    Seed,
    Texts,
    finite,
    token_report,
)

MAX_COPIES = 16

# of both routes; the last four are vLLM's
_UNCHANGING: Mapping[str, tuple[Any, ...]] = {
    **SAMPLING, **PENALTIES, "logit_bias": ({},), "repetition_penalty": (1,), "min_tokens": (0,),
    "ignore_eos": (False,), "use_beam_search": (False,),
}  # fmt: skip


class StreamOptions(Fields):
    """``stream_options`` of a request."""

    include_usage: Flag = Field(default=False, description="true: a last event with usage.")


class OpenAIAnswer(Dialect):
    """What requests to OpenAI's completions and to its chat have in common.

    Without ``max_tokens`` the server's cap applies, not OpenAI's 16: editors expect whole lines, and a trial with
    ``curl`` should not show a truncated completion.
    """

    client = "OpenAI"
    prefixes = ("/v1/",)
    answers = "OpenAI's; as events one for each token and each ending, then [DONE]"
    closing = b"data: [DONE]\n\n"
    reasons = ("stop", "stop", "length")

    max_tokens: int | None = Field(default=None, description="Limit of new tokens, from 1; default: the server's cap.")
    stop: Texts = Field(default=(), description="A text or a list; omitted from the completion.")
    stream: Flag = Field(default=False, description="true: server-sent events.")
    stream_options: StreamOptions = StreamOptions()
    seed: Seed = 0
    n: int = Field(default=1, ge=1, le=MAX_COPIES, description="Choices for each prompt: identical copies.")

    _created: int = PrivateAttr(default_factory=lambda: int(time.time()))

    @classmethod
    def error(cls, message: str, error: ServingError) -> dict[str, Any]:
        kind = "invalid_request_error" if isinstance(error, InvalidRequestError) else error.kind
        return {
            "error": {"message": message, "type": kind, "param": error.param, "code": None},
            "detail": [{"loc": "body", "msg": message, "type": error.kind}],  # where llm-ls looks for it
        }

    def _headed(self, what: str, mark: str) -> dict[str, Any]:
        return {"id": mark, "object": what, "created": self._created, "model": self._service.model_name}

    def _usage(self, endings: Sequence[Finished]) -> dict[str, Any]:
        read = sum(done.prompt_tokens for done in endings)
        made = sum(done.new_tokens for done in endings) * self.n
        return {
            "prompt_tokens": read,
            "prompt_tokens_details": {"cached_tokens": sum(done.prompt_reused for done in endings)},
            "completion_tokens": made,
            "total_tokens": read + made,
        }


class OpenAI(OpenAIAnswer):
    """A request to OpenAI's completions."""

    paths: ClassVar = {
        "/v1/completions": "Complete one text or several; events where ``stream`` is true.",
        "/completions": "The same, for clients whose base address lacks ``/v1``.",
    }

    unchanging: ClassVar = {**_UNCHANGING, "best_of": (1,)}

    prompt: Prompts = Field(description="Text before the cursor, or its token ids, or a list of either.")
    suffix: str | None = Field(default=None, description="Text after the cursor.")
    echo: Flag = Field(default=False, description="true: begin the text, and logprobs, with the prompt.")
    logprobs: Annotated[int | None, BeforeValidator(lambda value: None if value is False else value)] = Field(
        default=None, ge=0, le=1, description="Log probabilities of the tokens; 1: of the most probable one, too."
    )

    _id: str = PrivateAttr(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    _sent: dict[int, int] = PrivateAttr(default_factory=dict)  # place of a prompt → characters of its text
    _endings: list[Finished] = PrivateAttr(default_factory=list)

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        told = self.logprobs is not None or not all(isinstance(prompt, str) for prompt in self.prompt)
        scored, nothing = self.echo and told, self.echo and self.max_tokens == 0  # the prompt alone is wanted
        if (scored or nothing) and (self.stream or self.suffix):
            raise InvalidRequestError(
                "echo with logprobs, token ids or max_tokens = 0 is answered whole, and without a suffix. Omit stream "
                "and suffix, or echo.", "echo",
            )  # fmt: skip
        limit = 1 if nothing else self.max_tokens
        how = {"max_new_tokens": limit, "stop": self.stop, "seed": self.seed, "scored": scored}
        return [make(prompt, self.suffix, **how) for prompt in self.prompt]

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        text, offset = self._next(place, token.text)
        return self._copied(place, text, None, self._probable((), [token], "", offset), token_report(token))

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
        if self.max_tokens == 0:
            endings = [replace(done, text="", rest="", tokens=(), ending="length") for done in endings]
        choices = [
            {
                "text": ("".join(one.text for one in done.echoed) or self._begin(place)) + done.text,
                "index": place * self.n + copy,
                "finish_reason": self.reason(done.ending),
                "logprobs": self._probable(done.echoed, done.tokens, done.rest, 0),
                "exit_layers": reports[place]["exit_layers"],
                "x_early_exit": reports[place],
            }
            for place, done in enumerate(endings)
            for copy in range(self.n)
        ]
        report = reports[0] if len(reports) == 1 else None
        return self._head() | {"choices": choices, "usage": self._usage(endings), "x_early_exit": report}

    def _head(self) -> dict[str, Any]:
        return self._headed("text_completion", self._id)

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

    def _probable(
        self, echoed: Sequence[Echoed], tokens: Sequence[Token], rest: str, offset: int
    ) -> dict[str, Any] | None:
        """Return the log probabilities of tokens; what was held back until the ending is the last one's."""
        if self.logprobs is None or not (echoed or tokens):
            return None
        all_of_them: list[Echoed | Token] = [*echoed, *tokens]
        pieces = [one.text for one in all_of_them]
        pieces[-1] += rest
        values = [one.logprob and finite(one.logprob) for one in all_of_them]
        tops: list[dict[str, float | None] | None] = [
            None if one.logprob is None else {one.text: one.logprob, one.best: one.best_logprob} for one in echoed
        ]
        made = len(echoed)
        tops += [{piece: value} for piece, value in zip(pieces[made:], values[made:], strict=True)]
        return {
            "tokens": pieces,
            "token_logprobs": values,
            "top_logprobs": tops if self.logprobs else None,
            "text_offset": [offset + sum(map(len, pieces[:place])) for place in range(len(pieces))],
        }


class Message(Fields):
    """One turn of a conversation."""

    role: str = Field(description="system, user or assistant, or what the model's template knows besides.")
    content: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})] = Field(
        default="", description="Text, or a list of parts of type text."
    )

    @property
    def text(self) -> str:
        """Its text, parts joined."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content if isinstance(self.content, list) else [self.content]
        said = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts
        ]
        texts = [text for text in said if isinstance(text, str)]
        if len(texts) < len(parts):
            raise InvalidRequestError("a message holds something else than text. Send text alone.")
        return "".join(texts)


class Chat(OpenAIAnswer):
    """A request to OpenAI's chat completions, written as the model's own template writes it.

    Decoding is greedy, and without tools.
    """

    paths: ClassVar = {"/v1/chat/completions": "Answer a conversation; events where ``stream`` is true."}
    prefixes = ("/v1/chat/",)
    unchanging: ClassVar = {
        **_UNCHANGING, "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "functions": ([],),
        "response_format": ({"type": "text"},), "modalities": (["text"],),
    }  # fmt: skip

    messages: Annotated[list[Message], Field(min_length=1)] = Field(description="The conversation so far.")
    max_completion_tokens: int | None = Field(default=None, description="As max_tokens, which it goes before.")

    _id: str = PrivateAttr(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        turns = [{"role": one.role, "content": one.text} for one in self.messages]
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        prompt = self._service.conversation(turns)
        return [make(prompt, None, max_new_tokens=limit, stop=self.stop, seed=self.seed)]

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        begin = {"role": "assistant"} if token.index == 0 else {}
        return self._copied({**begin, "content": token.text}, None, token_report(token))

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        begin = {} if done.tokens else {"role": "assistant"}
        said = {**begin, "content": done.rest}
        events = self._copied(said, self.reason(done.ending), {"x_early_exit": early_exit_report(done)})
        if self.stream_options.include_usage:
            events.append(self._chunk_head() | {"choices": [], "usage": self._usage([done])})
        return events

    def whole(self, endings: Sequence[Finished]) -> dict[str, Any]:
        (done,) = endings
        report = early_exit_report(done)
        message = {"role": "assistant", "content": done.text}
        facts = {"finish_reason": self.reason(done.ending), "logprobs": None, "x_early_exit": report}
        choices = [{"index": copy, "message": message, **facts} for copy in range(self.n)]
        head = self._headed("chat.completion", self._id)
        return head | {"choices": choices, "usage": self._usage(endings), "x_early_exit": report}

    def _chunk_head(self) -> dict[str, Any]:
        return self._headed("chat.completion.chunk", self._id)

    def _copied(self, delta: dict[str, Any], reason: str | None, facts: dict[str, Any]) -> list[dict[str, Any]]:
        usage = {"usage": None} if self.stream_options.include_usage else {}
        choice = {"delta": delta, "finish_reason": reason, "logprobs": None, **facts}
        return [self._chunk_head() | {"choices": [{"index": copy, **choice}]} | usage for copy in range(self.n)]
