"""Hugging Face's dialect, as its own client and as a plain one see it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub import errors as hub

from harness.decoding.generation import Token
from harness.serving.failures import DrainingError, GenerationError, OverloadedError
from harness.serving.http.routes.tgi import Generation, StreamEvent
from harness.serving.jobs import Finished, Job, Ticket

PROMPT = "def add(a, b):\n    "


class Changed:
    """A ticket whose pieces are changed on their way."""

    def __init__(self, ticket: Ticket, change: Callable[[Token | Finished], Token | Finished]) -> None:
        self.ticket, self.change = ticket, change

    async def __aiter__(self) -> AsyncIterator[Token | Finished]:
        async for piece in self.ticket:
            yield self.change(piece)

    def cancel(self) -> None:
        self.ticket.cancel()


@pytest.fixture
def changed(server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    """Change what the engine says, for one test."""

    def change(how: Callable[[Any], Any]) -> None:
        submit = server.service.submit
        monkeypatch.setattr(server.service, "submit", lambda job: Changed(submit(job), how))

    return change


@pytest.fixture
def refusing(server: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    def refuse(error: Exception) -> None:
        def submit(job: Job) -> Ticket:
            raise error

        monkeypatch.setattr(server.service, "submit", submit)

    return refuse


def fails_at(index: int) -> Callable[[Any], Any]:
    def change(piece: Any) -> Any:
        if isinstance(piece, Finished) or piece.index >= index:
            raise GenerationError("the engine failed.")
        return piece

    return change


@pytest.fixture
def client(server: Any, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # loopback is no hub
    return InferenceClient(model=server.url)


def post(server: Any, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data:") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data:")) for block in blocks]


def test_the_hubs_client_gets_one_text_in_all_four_forms(server: Any, client: InferenceClient) -> None:
    plain = client.text_generation(PROMPT, max_new_tokens=5)
    whole = client.text_generation(PROMPT, max_new_tokens=5, details=True)
    texts = list(client.text_generation(PROMPT, max_new_tokens=5, stream=True))
    events = list(client.text_generation(PROMPT, max_new_tokens=5, stream=True, details=True))
    assert plain
    assert whole.generated_text == plain == "".join(texts) == "".join(event.token.text for event in events)

    assert whole.details is not None
    tokens = whole.details.tokens
    assert whole.details.generated_tokens == len(tokens) == len(texts) == len(events) <= 5
    assert "".join(token.text for token in tokens) == plain
    assert [token.id for token in tokens] == [event.token.id for event in events]
    assert whole.details.finish_reason == ("length" if len(tokens) == 5 else "eos_token")

    *before, last = events
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert all(event.generated_text is None and event.details is None for event in before)
    assert last.generated_text == plain
    assert last.details is not None
    assert last.details.generated_tokens == len(events)
    assert last.details.finish_reason == whole.details.finish_reason
    assert last.details.input_length > 0


@pytest.mark.parametrize("path", ["/generate", "/models/bigcode/starcoder", "/"])
def test_the_hubs_client_reads_every_address(server: Any, client: InferenceClient, path: str) -> None:
    assert client.text_generation(PROMPT, model=server.url + path, max_new_tokens=2) == client.text_generation(
        PROMPT, max_new_tokens=2
    )


def test_a_text_that_ends_a_completion_belongs_to_it(client: InferenceClient) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=8, details=True)
    assert whole.details is not None
    stop = next(token.text for token in whole.details.tokens[2:] if token.text)
    ended = client.text_generation(PROMPT, max_new_tokens=8, details=True, stop=["never said \0", stop])
    assert ended.details is not None
    assert ended.details.finish_reason == "stop_sequence"
    assert stop in ended.generated_text
    assert whole.generated_text.startswith(ended.generated_text)
    streamed = client.text_generation(PROMPT, max_new_tokens=8, stream=True, stop=[stop])
    assert "".join(streamed) == ended.generated_text


def test_full_text_begins_with_the_prompt(server: Any, client: InferenceClient) -> None:
    plain = client.text_generation(PROMPT, max_new_tokens=3)
    assert client.text_generation(PROMPT, max_new_tokens=3, return_full_text=True) == PROMPT + plain
    asked = {"max_new_tokens": 3, "return_full_text": True}
    *_, last = events_of(post(server, "/generate_stream", inputs=PROMPT, parameters=asked))
    assert last["generated_text"] == PROMPT + plain


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OverloadedError("64 requests are waiting."), hub.OverloadedError),
        (GenerationError("the engine failed."), hub.GenerationError),
        (DrainingError("the server is shutting down."), hub.UnknownError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_hubs_client_raises_its_own_errors(
    client: InferenceClient, refusing: Callable[[Exception], None], error: Any, raised: type[Exception], stream: bool
) -> None:
    refusing(error)
    with pytest.raises(raised, match=str(error)):
        client.text_generation(PROMPT, stream=stream)


def test_the_hubs_client_knows_a_prompt_that_cannot_be_used(client: InferenceClient) -> None:
    with pytest.raises(hub.ValidationError, match="inputs"):
        client.text_generation("")


def test_the_hubs_client_hears_of_a_failure_half_way(client: InferenceClient, changed: Any) -> None:
    changed(fails_at(3))
    heard: list[str] = []
    with pytest.raises(hub.GenerationError, match="the engine failed"):
        heard.extend(client.text_generation(PROMPT, max_new_tokens=8, stream=True))
    assert len(heard) == 3


def test_a_failure_half_way_is_the_last_event(server: Any, changed: Any) -> None:
    changed(fails_at(2))
    *tokens, last = events_of(post(server, "/generate_stream", inputs=PROMPT, parameters={"max_new_tokens": 8}))
    assert last == {"error": "the engine failed.", "error_type": "generation"}
    assert all(event["generated_text"] is None for event in tokens)


def test_what_was_held_back_is_not_lost(server: Any, changed: Any) -> None:
    def hold_back(piece: Token | Finished) -> Token | Finished:
        if isinstance(piece, Token):
            return replace(piece, text="")
        return replace(piece, rest=piece.text, tokens=tuple(replace(token, text="") for token in piece.tokens))

    asked = {"max_new_tokens": 4, "details": True}
    text = post(server, "/generate", inputs=PROMPT, parameters=asked).json()["generated_text"]
    changed(hold_back)
    whole = post(server, "/generate", inputs=PROMPT, parameters=asked).json()
    streamed = events_of(post(server, "/generate_stream", inputs=PROMPT, parameters=asked))
    assert "".join(token["text"] for token in whole["details"]["tokens"]) == whole["generated_text"] == text
    assert "".join(event["token"]["text"] for event in streamed) == streamed[-1]["generated_text"] == text


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("eos", "eos_token"), ("stop", "stop_sequence"), ("length", "length"), ("deadline", "length")],
)
def test_every_ending_has_a_reason(server: Any, changed: Any, ending: Any, reason: str) -> None:
    changed(lambda piece: replace(piece, ending=ending) if isinstance(piece, Finished) else piece)
    asked = {"max_new_tokens": 1, "details": True}
    whole = post(server, "/generate", inputs=PROMPT, parameters=asked).json()
    (streamed,) = events_of(post(server, "/generate_stream", inputs=PROMPT, parameters=asked))
    assert whole["details"]["finish_reason"] == streamed["details"]["finish_reason"] == reason
    assert whole["x_early_exit"]["ending"] == streamed["x_early_exit"]["ending"] == ending


def test_a_number_that_is_none_is_null(server: Any, changed: Any) -> None:
    def broken(piece: Token | Finished) -> Token | Finished:
        if isinstance(piece, Token):
            return replace(piece, logprob=float("nan"))
        return replace(piece, tokens=tuple(replace(token, logprob=float("-inf")) for token in piece.tokens))

    changed(broken)
    asked = {"max_new_tokens": 2, "details": True}
    whole = post(server, "/generate", inputs=PROMPT, parameters=asked).json()
    assert {token["logprob"] for token in whole["details"]["tokens"]} == {None}
    streamed = events_of(post(server, "/generate_stream", inputs=PROMPT, parameters=asked))
    assert {event["token"]["logprob"] for event in streamed} == {None}


def test_answers_have_the_keys_of_tgi(server: Any) -> None:
    plain = post(server, "/generate", inputs=PROMPT, parameters={"max_new_tokens": 2}).json()
    assert plain.keys() == {"generated_text", "x_early_exit"}
    asked = {"max_new_tokens": 3, "details": True, "seed": 7, "decoder_input_details": True}
    answer = post(server, "/generate", inputs=PROMPT, parameters=asked).json()
    whole = Generation.model_validate(answer)
    assert answer["details"].keys() == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert whole.details is not None
    assert (whole.details.seed, whole.details.prefill) == (7, [])
    assert [token.exit_layer for token in whole.details.tokens] == whole.x_early_exit.exit_layers

    *before, last = events_of(post(server, "/generate_stream", inputs=PROMPT, parameters=asked))
    assert all(event.keys() == {"index", "token", "generated_text", "details"} for event in before)
    assert StreamEvent.model_validate(last).x_early_exit is not None
    layers = [event["token"]["exit_layer"] for event in [*before, last]]
    assert layers == last["x_early_exit"]["exit_layers"] == whole.x_early_exit.exit_layers


@pytest.mark.parametrize(("path", "listed"), [("/generate", False), ("/", True), ("/models/a/b", True)])
def test_aliases_answer_a_list(server: Any, path: str, listed: bool) -> None:
    answer = post(server, path, inputs=PROMPT, parameters={"max_new_tokens": 1}).json()
    assert isinstance(answer, list) is listed
    Generation.model_validate(answer[0] if listed else answer)


def test_a_model_may_have_any_name_but_one_of_two_lines(server: Any) -> None:
    names = {"a": 200, "a/b:c@d": 200, "%20": 200, "": 200, "%F0%9F%98%80": 200, "a%0Ab": 404}
    asked = {"inputs": PROMPT, "parameters": {"max_new_tokens": 1}}
    for name, status in names.items():
        assert post(server, f"/models/{name}", **asked).status_code == status, name
    documented = httpx.get(f"{server.url}/openapi.json").json()["paths"]["/models/{model}"]["post"]["responses"]
    assert {str(status) for status in names.values()} <= documented.keys()


@pytest.mark.parametrize("path", ["/", "/models/a"])
def test_aliases_stream_where_asked(server: Any, path: str) -> None:
    events = events_of(post(server, path, inputs=PROMPT, stream=True, parameters={"max_new_tokens": 2}))
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": 2},
        {"parameters": {"max_new_tokens": 2, "temperature": 0.2}},
        {"parameters": {"max_new_tokens": 7}, "max_new_tokens": 2},
        {"parameters": {"max_new_tokens": 2}, "max_new_tokens": None},
        {"max_new_tokens": "2", "temperature": "hot", "stop": None, "top_p": {}, "seed": "7", "truncate": 1000.0},
        {"max_new_tokens": 2, "stop": [None, ""], "details": False, "return_full_text": None},
    ],
)
def test_parameters_as_clients_send_them(server: Any, parameters: dict[str, Any]) -> None:
    answer = post(server, "/generate", inputs=PROMPT, parameters=parameters, model="x", unknown=[1])
    assert answer.status_code == 200
    assert answer.json().keys() == {"generated_text", "x_early_exit"}
    assert len(answer.json()["x_early_exit"]["exit_layers"]) == 2
