"""OpenAI's dialect, as its own client and as a plain one see it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from harness.decoding.generation import Token
from harness.serving.failures import GenerationError, OverloadedError
from harness.serving.http.routes.openai import Chunk, Completion
from harness.serving.jobs import Finished, Job, Ticket

PROMPT = "def add(a, b):\n    "
OTHER = "import os\n\nfor name in"


class Failing:
    """A ticket that fails after some tokens."""

    def __init__(self, ticket: Ticket, after: int) -> None:
        self.ticket, self.after = ticket, after

    async def __aiter__(self) -> AsyncIterator[Token | Finished]:
        async for piece in self.ticket:
            if isinstance(piece, Finished) or piece.index >= self.after:
                raise GenerationError("the engine failed.")
            yield piece

    def cancel(self) -> None:
        self.ticket.cancel()


class HeldBack(Failing):
    """A ticket that holds its text back until the ending, which is ``after`` its time."""

    async def __aiter__(self) -> AsyncIterator[Token | Finished]:
        async for piece in self.ticket:
            if isinstance(piece, Token):
                yield replace(piece, text="")
            else:
                tokens = tuple(replace(token, text="") for token in piece.tokens)
                yield replace(piece, rest=piece.text, tokens=tokens, ending="deadline")


@pytest.fixture
def wrapped(server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Ticket], Ticket]], None]:
    def wrap(how: Callable[[Ticket], Ticket]) -> None:
        submit = server.service.submit
        monkeypatch.setattr(server.service, "submit", lambda job: how(submit(job)))

    return wrap


@pytest.fixture(scope="module")
def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


def post(server: Any, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def data_of(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    return [block.removeprefix("data: ") for block in blocks]


def create(client: openai.OpenAI, prompt: Any = PROMPT, **asked: Any) -> Any:
    return client.completions.create(model="any", prompt=prompt, **{"max_tokens": 5} | asked)


def test_openais_client_gets_one_text_whole_and_streamed(server: Any, client: openai.OpenAI) -> None:
    whole = create(client)
    chunks = list(create(client, stream=True))
    (choice,) = whole.choices
    assert choice.text == "".join(chunk.choices[0].text for chunk in chunks) != ""
    assert whole.object == "text_completion"
    assert whole.model == server.service.model_name
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [choice.finish_reason]
    assert choice.finish_reason == ("length" if whole.usage.completion_tokens == 5 else "stop")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)

    *tokens, ending = chunks
    assert [chunk.choices[0].exit_layer for chunk in tokens] == choice.exit_layers
    assert ending.choices[0].exit_layer is None
    assert whole.x_early_exit["exit_layers"] == ending.x_early_exit["exit_layers"] == choice.exit_layers
    assert len(choice.exit_layers) == whole.usage.completion_tokens


def test_usage_comes_last_in_a_stream(client: openai.OpenAI) -> None:
    whole = create(client)
    *chunks, last = create(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert last.choices == []
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(last.usage, count) == getattr(whole.usage, count)
    assert 0 <= last.usage.prompt_tokens_details.cached_tokens < last.usage.prompt_tokens


def test_chunks_have_the_keys_of_openai(server: Any) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 3, "stream": True}
    *chunks, done = data_of(post(server, **asked))
    assert done == "[DONE]"
    assert all("usage" not in json.loads(chunk) for chunk in chunks)
    *chunks, done = data_of(post(server, **asked, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    *before, last = map(json.loads, chunks)
    assert all(chunk["usage"] is None for chunk in before)
    assert last["usage"]["completion_tokens"] == 3
    for chunk in [*before, last]:
        Chunk.model_validate(chunk)


def test_early_exit_is_the_requests_own(server: Any, client: openai.OpenAI) -> None:
    default = create(client)
    full = create(client, extra_body={"early_exit": {"strategy": "full"}})
    header = create(client, extra_headers={"X-Early-Exit": "full"})
    depth = server.service.info.num_layers
    assert full.x_early_exit["strategy"] == header.x_early_exit["strategy"] == "full"
    assert default.x_early_exit["strategy"] == server.service.settings.default.name
    assert full.x_early_exit["num_layers"] == depth
    assert create(client).x_early_exit["strategy"] == default.x_early_exit["strategy"]  # no request changes the server


def test_several_prompts_have_a_choice_each(client: openai.OpenAI) -> None:
    alone = [create(client, prompt).choices[0] for prompt in (PROMPT, OTHER)]
    both = create(client, [PROMPT, OTHER])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert [choice.text for choice in both.choices] == [choice.text for choice in alone]
    assert both.x_early_exit is None
    assert [choice.x_early_exit["exit_layers"] for choice in both.choices] == [choice.exit_layers for choice in alone]
    assert both.usage.completion_tokens == sum(len(choice.exit_layers) for choice in alone)

    texts, reasons = ["", ""], []
    for chunk in create(client, [PROMPT, OTHER], stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons += [choice.index] if choice.finish_reason else []
    assert texts == [choice.text for choice in alone]
    assert sorted(reasons) == [0, 1]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]], [PROMPT]])
def test_prompts_in_every_form(client: openai.OpenAI, prompt: Any) -> None:
    whole = create(client, prompt, max_tokens=2)
    assert len(whole.choices) == 1
    assert whole.usage.prompt_tokens > 0


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], ["a", ""], [True], [-1], [1.5], 5, None, {"a": 1}, ["a", None]])
def test_a_prompt_that_is_none_is_refused(server: Any, prompt: Any) -> None:
    refused = post(server, prompt=prompt)
    assert refused.status_code == 422
    assert "prompt" in refused.json()["error"]["message"]


def test_copies_are_the_same(client: openai.OpenAI) -> None:
    one = create(client, [PROMPT, OTHER])
    copies = create(client, [PROMPT, OTHER], n=3)
    assert [choice.index for choice in copies.choices] == list(range(6))
    assert [choice.text for choice in copies.choices] == [c.text for c in one.choices for _ in range(3)]
    assert copies.usage.completion_tokens == 3 * one.usage.completion_tokens
    assert copies.usage.prompt_tokens == one.usage.prompt_tokens
    texts = [""] * 6
    for chunk in create(client, [PROMPT, OTHER], n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in copies.choices]


def test_an_echo_begins_with_the_prompt(server: Any, client: openai.OpenAI) -> None:
    plain = create(client).choices[0].text
    assert create(client, echo=True).choices[0].text == PROMPT + plain
    streamed = create(client, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == PROMPT + plain
    refused = post(server, prompt=[1, 2], echo=True)
    assert refused.status_code == 422
    assert "echo" in refused.json()["error"]["message"]


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_say_where_each_token_is(client: openai.OpenAI, echo: bool) -> None:
    (choice,) = create(client, logprobs=1, echo=echo).choices
    said = choice.logprobs
    assert len(said.tokens) == len(said.token_logprobs) == len(said.text_offset) == len(choice.exit_layers)
    assert all(choice.text[at:].startswith(token) for at, token in zip(said.text_offset, said.tokens, strict=True))
    assert all(value <= 0 for value in said.token_logprobs)
    assert said.top_logprobs == [{t: v} for t, v in zip(said.tokens, said.token_logprobs, strict=True)]

    tokens, offsets = [], []
    for chunk in create(client, logprobs=0, echo=echo, stream=True):
        if chunk.choices[0].logprobs is not None:
            assert chunk.choices[0].logprobs.top_logprobs is None
            tokens += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
    assert (tokens, offsets) == (said.tokens, said.text_offset)
    assert create(client).choices[0].logprobs is None


def test_what_was_held_back_is_not_lost(server: Any, client: openai.OpenAI, wrapped: Any) -> None:
    text = create(client).choices[0].text
    wrapped(lambda ticket: HeldBack(ticket, 0))
    whole = create(client, logprobs=1).choices[0]
    assert (whole.text, whole.finish_reason) == (text, "length")  # for want of time
    assert "".join(whole.logprobs.tokens) == text
    chunks = list(create(client, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].x_early_exit["ending"] == "deadline"


def test_openais_client_raises_its_own_errors(
    server: Any, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        create(client, extra_body={"early_exit": {"strategy": "no such thing"}})
    assert refused.value.body == {
        "message": refused.value.body["message"],
        "type": "validation",
        "param": None,
        "code": 422,
    }
    assert "no such thing" in refused.value.body["message"]

    def full(job: Job) -> Ticket:
        raise OverloadedError("64 requests are waiting. Try again later.")

    monkeypatch.setattr(server.service, "submit", full)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="64 requests are waiting") as overloaded:
            create(client, stream=stream)
        assert overloaded.value.response.headers["retry-after"] == "1"


def test_a_failure_before_the_first_token_has_a_status(server: Any, client: openai.OpenAI, wrapped: Any) -> None:
    wrapped(lambda ticket: Failing(ticket, 0))
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match="the engine failed") as failed:
            create(client, stream=stream)
        assert failed.value.status_code == 424


def test_a_failure_half_way_is_an_event_and_nothing_is_done(server: Any, client: openai.OpenAI, wrapped: Any) -> None:
    wrapped(lambda ticket: Failing(ticket, 2))
    *_, last = data_of(post(server, prompt=[PROMPT, OTHER], stream=True, max_tokens=5))
    assert json.loads(last) == {
        "error": {"message": "the engine failed.", "type": "generation", "param": None, "code": 424},
        "detail": [{"loc": "body", "msg": "the engine failed.", "type": "generation"}],
    }
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(create(client, stream=True))


def test_the_address_without_v1_is_the_same(server: Any) -> None:
    answers = [post(server, path, prompt=PROMPT, max_tokens=2).json() for path in ("/v1/completions", "/completions")]
    for answer in answers:
        Completion.model_validate(answer)
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]


def test_a_text_that_ends_a_completion_is_left_to_the_engine(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    submit = server.service.submit
    monkeypatch.setattr(server.service, "submit", lambda job: (jobs.append(job), submit(job))[1])
    for stop in (None, "\n\n", ["\n\n", "", "def", "\n\n", None]):
        assert post(server, prompt=PROMPT, max_tokens=1, stop=stop).status_code == 200
    assert [job.stop for job in jobs] == [(), ("\n\n",), ("\n\n", "def")]
    assert not any(job.keep_stop for job in jobs)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "hot", "top_p": [], "presence_penalty": {}, "logit_bias": 5, "user": None, "best_of": "x"},
        {"suffix": None, "stop": None, "stream": None, "stream_options": None, "echo": None, "logprobs": None},
        {"suffix": "", "stop": [], "stream": False, "stream_options": {}, "echo": False, "logprobs": False, "n": 1.0},
        {"n": None, "seed": 2**80, "model": 5, "unknown": {"a": [1]}},
        {"n": "1", "seed": -5, "logprobs": -1},
    ],
)
def test_fields_that_are_not_used_and_values_as_clients_write_them_break_nothing(
    server: Any, fields: dict[str, Any]
) -> None:
    answer = post(server, prompt=PROMPT, max_tokens="2", **fields)
    assert answer.status_code == 200
    (choice,) = Completion.model_validate(answer.json()).choices
    assert len(choice.exit_layers) == 2
    assert choice.logprobs is None
