"""llama.cpp's dialect: ``POST /infill`` for llama.vim and llama.vscode, and ``POST /completion``.

Answers are compact JSON with ``content`` first, since llama.vim looks for ``"content":"`` in the text.
``response_fields`` are answered as llama.cpp does: one flat entry for each path that exists.

A prompt that begins as an earlier one of the same API key is read from where it differs, unless ``cache_prompt`` is
false. ``n_predict = 0``, which llama.vim sends to have its ``input_extra`` read in advance, is answered at once and
evaluates nothing; −1 (no end, the default) and −2 (to the end of the context) stand for the server's cap.
``t_max_predict_ms`` ends a completion that has a line break, as llama.cpp does: half a line is useless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo

from harness.decoding.generation import Token
from harness.serving.completions import Finished, InvalidRequestError, ServingError, Wanted, early_exit_report
from harness.serving.dialects.dialect import (
    Dialect,
    Flag,
    OnePrompt,
    Seed,
    SetFlag,
    Text,
    Texts,
    limit_reader,
    read_object,
    refused,
    token_report,
)


def _fields(value: object, info: ValidationInfo) -> list[str]:
    if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise refused(info.field_name, value, "a list of texts")
    return value or []


def _seconds(value: object, info: ValidationInfo) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(info.field_name, value, "a number of milliseconds")
    return value / 1000 if 0 < value < 1e9 else None


Holder = Annotated[dict[str, Any], read_object, Field(default_factory=dict, description="Read: early_exit.")]


class _LlamaCpp(Dialect):
    """Fields that both routes read, and their answers."""

    client = "llama.cpp"
    answers = "llama.cpp's; as events one for each token, the last with stop = true; response_fields choose among them"
    reasons = ("eos", "word", "limit")

    n_predict: Annotated[
        int | None,
        BeforeValidator(limit_reader(-1, -2, least=0)),
        Field(description="Limit of new tokens; -1, -2: the server's cap; 0: nothing is made, nothing evaluated."),
    ] = None
    stop: Annotated[Texts, Field(description="Texts that end the completion; omitted from it.")] = ()
    t_max_predict_ms: Annotated[
        float | None,
        BeforeValidator(_seconds),
        Field(description="Milliseconds after the first token when it ends, once there is a line break."),
    ] = None
    stream: Annotated[Flag, Field(description="true: server-sent events.")] = False
    response_fields: Annotated[
        list[str], BeforeValidator(_fields), Field(description="Fields to be answered, as timings/prompt_n.")
    ] = Field(default_factory=list)
    seed: Seed = 0
    cache_prompt: Annotated[SetFlag, Field(description="false: read the whole prompt, and keep nothing of it.")] = True
    parameters: Holder
    options: Holder

    def at_once(self) -> dict[str, Any] | None:
        """Answer a client that warms a cache with ``input_extra``, which this server does not read."""
        if self.n_predict != 0:
            return None
        counts = {"tokens_predicted": 0, "tokens_evaluated": 0, "tokens_cached": 0}
        return self._chosen(self._ending("", stop_type="limit", truncated=False) | counts)

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        made = {"tokens": [token.token_id], "tokens_predicted": token.index + 1}
        return [{"content": token.text, "stop": False} | made | token_report(token)]

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        return [self._finished(done.rest, done)]

    def whole(self, endings: Sequence[Finished]) -> dict[str, Any]:
        return self._finished(endings[0].text, endings[0])

    @classmethod
    def error(cls, message: str, error: ServingError) -> dict[str, Any]:
        return {"error": {"code": error.status, "message": message, "type": error.kind}}

    def _asked(self, prompt: str | list[int], suffix: str | None) -> list[Wanted]:
        return [
            Wanted(
                prompt,
                suffix,
                self.n_predict,
                self.stop,
                early_exit=self.early_exit,
                truncate=True,
                generate_s=self.t_max_predict_ms,
                seed=self.seed,
                reuse=self.cache_prompt,
            )
        ]

    def _ending(self, text: str, *, stop_type: str, truncated: bool) -> dict[str, Any]:
        facts = {"model": self._service.model_name, "stop_type": stop_type, "truncated": truncated}
        return {"content": text, "stop": True} | facts

    def _finished(self, text: str, done: Finished) -> dict[str, Any]:
        answer = self._ending(text, stop_type=self.reason(done.ending), truncated=done.prompt.truncated > 0)
        return self._chosen(
            answer
            | {
                "tokens_predicted": done.new_tokens,
                "tokens_evaluated": done.prompt_tokens,
                "tokens_cached": done.prompt_reused,
                "generation_settings": {},
                "timings": _timings(done),
                "x_early_exit": early_exit_report(done),
            }
        )

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the fields asked for, each under its path, and what early exit did."""
        if not self.response_fields:
            return answer
        chosen: dict[str, Any] = {}
        for path in self.response_fields:
            found: Any = answer
            for key in path.split("/"):
                if not isinstance(found, dict) or key not in found:
                    break
                found = found[key]
            else:
                chosen[path] = found
        return chosen | ({"x_early_exit": answer["x_early_exit"]} if "x_early_exit" in answer else {})


class Infill(_LlamaCpp):
    """A request to llama.cpp's ``/infill``."""

    paths: ClassVar = {"/infill": "Complete a text at the cursor; a prompt that is too long is cut at its beginning."}

    input_prefix: Annotated[Text, Field(description="Text before the cursor's line.")] = None
    prompt: Annotated[Text, Field(description="Text of that line before the cursor.")] = None
    input_suffix: Annotated[Text, Field(description="Text after the cursor.")] = None

    def wanted(self) -> list[Wanted]:
        prefix, suffix, fim = (self.input_prefix or "") + (self.prompt or ""), self.input_suffix, self._service.fim
        if suffix is not None and not suffix.strip() and not fim:
            suffix = None  # llama.vim always sends a line break; a model without these tokens loses nothing
        if not prefix and not (suffix and fim):
            raise InvalidRequestError(
                "input_prefix and prompt are empty: there is nothing to complete. Send one of them."
            )
        return self._asked(prefix, suffix)


class Completion(_LlamaCpp):
    """A request to llama.cpp's ``/completion``."""

    paths: ClassVar = {"/completion": "Complete a text; a prompt that is too long is cut at its beginning."}

    prompt: Annotated[OnePrompt, Field(description="Text before the cursor, or its tokens.")]

    def wanted(self) -> list[Wanted]:
        prompt, *more = self.prompt
        if more:
            raise InvalidRequestError(
                f"prompt has {len(more) + 1} prompts; send one, as a text or a list of token ids."
            )
        return self._asked(prompt, None)


def _timings(done: Finished) -> dict[str, float]:
    """Return llama.cpp's timings. The first token comes out of reading the prompt, so that ``predicted_ms`` and the
    rates are those of the others; what was not measured is omitted.
    """
    timings: dict[str, float] = {"cache_n": done.prompt_reused}
    for name, counted, tokens, seconds in (
        ("prompt", done.prompt_computed, done.prompt_computed, done.prefill_s),
        ("predicted", done.new_tokens, done.new_tokens - 1, done.decode_s),
    ):
        timings |= {f"{name}_n": counted, f"{name}_ms": round(seconds * 1000, 3)}
        if tokens > 0 and seconds > 0:
            timings |= {f"{name}_per_token_ms": seconds * 1000 / tokens, f"{name}_per_second": tokens / seconds}
    return timings
