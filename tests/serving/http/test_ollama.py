"""Ollama's dialect: what its clients send, streamed or not, and what they need back."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import httpx
import pytest

from harness.serving.jobs import Job

PROMPT = "def fibonacci(n):\n    "


def ask(server: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/api/generate", json={"model": "m", "prompt": PROMPT, **body}, timeout=60)


def whole(server: Any, **body: Any) -> dict[str, Any]:
    answer = ask(server, stream=False, **body)
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_whole_answer_adds_up(server: Any) -> None:
    answer = whole(server, options={"num_predict": 5})
    report = answer["x_early_exit"]
    assert answer["model"] == server.service.model_name
    assert answer["done"] is True
    assert answer["done_reason"] in {"stop", "length"}
    assert 1 <= answer["eval_count"] <= 5
    assert answer["eval_count"] == len(report["exit_layers"])
    assert answer["prompt_eval_count"] == report["prompt_tokens"] > 0
    assert all(1 <= layer <= report["num_layers"] for layer in report["exit_layers"])
    assert all(isinstance(answer[name], int) for name in answer if name.endswith(("_duration", "_count")))
    spent = answer["prompt_eval_duration"] + answer["eval_duration"]
    assert spent == pytest.approx(answer["total_duration"] - report["queue_s"] * 1e9, abs=5e3)
    assert datetime.fromisoformat(answer["created_at"]).utcoffset() is not None


def test_it_streams_unless_told_not_to(server: Any) -> None:
    for body in ({}, {"stream": None}, {"stream": True}):
        objects = lines(ask(server, options={"num_predict": 6}, **body))
        *tokens, last = objects
        assert [piece["done"] for piece in objects] == [False] * len(tokens) + [True]
        assert last["eval_count"] == len(tokens)
        assert [piece["exit_layer"] for piece in tokens] == last["x_early_exit"]["exit_layers"]
        assert "exit_layer" not in last


def test_the_stream_spells_the_whole_answer(server: Any) -> None:
    streamed = "".join(piece["response"] for piece in lines(ask(server, options={"num_predict": 8})))
    assert streamed == whole(server, options={"num_predict": 8})["response"]


def test_a_stop_text_ends_it(server: Any) -> None:
    text = whole(server, options={"num_predict": 8})["response"]
    stop = text.strip()[:3]
    assert stop, "the model says nothing here: choose another prompt"
    for given in (stop, [stop], ["\0never", stop]):
        answer = whole(server, options={"num_predict": 8, "stop": given})
        assert answer["done_reason"] == "stop"
        assert answer["x_early_exit"]["ending"] in {"stop", "eos"}


def test_no_number_stands_for_the_servers_cap(server: Any, jobs: list[Job]) -> None:
    for number in (-1, -2, None, 10**30):
        ask(server, options={"num_predict": number, "stop": ["\n", " "]})
    assert {job.max_new_tokens for job in jobs} == {server.service.config.max_new_tokens}


def test_what_is_not_used_may_be_anything(server: Any, jobs: list[Job]) -> None:
    for value in (None, "hot", "", [], {}, [None, 3], True, -1, 2.5, 10**400):
        options = {"temperature": value, "top_p": value, "mirostat": value}
        fields = {"system": value, "context": value, "format": value, "keep_alive": value, "raw": value, "x": value}
        content = json.dumps({"prompt": PROMPT, "stream": False, **fields, "options": options | {"num_predict": 2}})
        answer = httpx.post(f"{server.url}/api/generate", content=content, timeout=60)
        assert answer.status_code == 200, (value, answer.text)
    assert all(0 <= job.seed < 2**63 for job in jobs)
    assert all("" not in job.stop for job in jobs)


@pytest.mark.parametrize(
    "given",
    [
        {"json": {"early_exit": {"strategy": "full"}}},
        {"json": {"early_exit": "full"}},
        {"json": {"options": {"early_exit": {"strategy": "full"}}}},
        {"json": {}, "headers": {"X-Early-Exit": "full"}},
        {"json": {}, "params": {"early_exit": "full"}},
        {"json": {"options": {"early_exit": "full"}}, "headers": {"X-Early-Exit": "nonsense"}},
    ],
)
def test_early_exit_can_be_set_everywhere(server: Any, given: dict[str, Any]) -> None:
    body = {"prompt": PROMPT, "stream": False, "options": {"num_predict": 2}}
    given["json"] = {**body, **given["json"], "options": {**body["options"], **given["json"].get("options", {})}}
    answer = httpx.post(f"{server.url}/api/generate", timeout=60, **given)
    assert answer.json()["x_early_exit"]["strategy"] == "full"


@pytest.mark.parametrize(
    "body",
    [
        {"early_exit": {"strategy": "nonsense"}},
        {"options": {"early_exit": {"strategy": "full", "nonsense": 1}}},
        {"early_exit": 3},
        {"prompt": ""},
        {"prompt": None},
        {"prompt": ["a"]},
        {"prompt": {}},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_must_be_right_is_refused_in_one_line(server: Any, body: dict[str, Any], stream: bool) -> None:
    answer = ask(server, stream=stream, **body)
    assert answer.status_code == 422
    assert isinstance(answer.json()["error"], str)
    assert "\n" not in answer.json()["error"]


def test_a_prompt_that_is_too_long_loses_its_beginning_unless_told_not_to(server: Any) -> None:
    long = {"prompt": "total = 1\n" * 4000, "stream": False, "options": {"num_predict": 1}}
    assert ask(server, **long).status_code == 200
    assert ask(server, **long, truncate=None).status_code == 200
    assert ask(server, **long, truncate=False).status_code == 422


@pytest.mark.parametrize("value", ["\ud800", float("inf"), float("nan")])
def test_what_is_no_json_is_no_failure_of_the_server(server: Any, value: Any) -> None:
    for place in ("prompt", "suffix", "stop", "keep_alive", "early_exit"):
        body = {"prompt": PROMPT, "stream": False, "options": {"num_predict": 1, "seed": value}, place: value}
        answer = httpx.post(f"{server.url}/api/generate", content=json.dumps(body), timeout=60)
        assert answer.status_code == 422 or (answer.status_code == 200 and place not in {"prompt", "early_exit"})


def test_a_suffix_is_read_ignored_or_refused_as_the_server_says(server: Any) -> None:
    answer = ask(server, stream=False, suffix="\nprint(1)\n", options={"num_predict": 2})
    if server.service.fim:
        assert answer.json()["x_early_exit"]["suffix"] == "used"
    elif server.service.config.suffix == "ignore":
        assert answer.json()["x_early_exit"]["suffix"] == "ignored"
    else:
        assert answer.status_code == 422
    assert ask(server, stream=False, suffix="", options={"num_predict": 2}).json()["x_early_exit"]["suffix"] == "none"


def test_a_failure_after_the_first_token_is_the_last_line(server: Any, failing: None) -> None:
    first, last = lines(ask(server))
    assert first["done"] is False
    assert last == {"error": "the engine failed.", "error_type": "generation"}
    assert ask(server, stream=False).status_code == 424


def test_the_ollama_package_reads_it(server: Any) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url)
    options = {"num_predict": 4, "temperature": 0.2, "early_exit": {"strategy": "full"}}
    answer = client.generate(model="m", prompt=PROMPT, options=options)
    assert answer.done
    assert answer.eval_count >= 1
    pieces = list(client.generate(model="m", prompt=PROMPT, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == answer.response
    assert [piece.done for piece in pieces] == [False] * answer.eval_count + [True]
    with pytest.raises(ollama.ResponseError) as refused:
        client.generate(model="m", prompt=PROMPT, options={"early_exit": {"strategy": "nonsense"}})
    assert refused.value.status_code == 422
    assert "nonsense" in refused.value.error
