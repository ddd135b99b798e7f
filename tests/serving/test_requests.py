"""What a client writes becomes the right job, or one clear line in its own dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from harness.appearance.visible_text import is_hidden
from harness.serving.app import make_app
from harness.serving.completions import DrainingError, Job, LoadingError, OverloadedError, ServingError
from harness.serving.dialects import refusal
from harness.serving.service import MAX_STOPS

PROMPT = "def add(a, b):\n"
PATHS = ("/generate", "/generate_stream", "/", "/models/", "/v1/completions", "/completions", "/api/generate",
         "/infill", "/completion")  # fmt: skip


class Desk:
    """Takes jobs down and refuses them, so that a test sees what a request became without waiting for it."""

    def __init__(self, url: str) -> None:
        self.url, self.jobs = url, list[Job]()

    def submit(self, jobs: Sequence[Job]) -> None:
        self.jobs.extend(jobs)
        raise OverloadedError("taken down.")

    def job(self, path: str, body: Any, **request: Any) -> Job:
        answer = httpx.post(self.url + path, json=body, **request)
        assert answer.status_code == 429, answer.text
        return self.jobs[-1]


@pytest.fixture
def desk(server: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    taken = Desk(server.url)
    monkeypatch.setattr(server.service, "submit", taken.submit)
    return taken


def refused(client: httpx.Client, path: str, content: bytes) -> str:
    """Return the one line of a 400, from where the dialect of the path has it."""
    answer = client.post(path, content=content)
    assert answer.status_code == 400, (path, content[:30], answer.text)
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    kind = answer.json()["error_type"] if isinstance(error, str) else error["type"]
    assert kind == ("invalid_request_error" if path.endswith("completions") else "validation")
    assert "\n" not in message
    assert len(message) < 500
    return str(message)


@pytest.fixture
def client(server: Any) -> Any:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


# ------------------------------------------------------------------------------------ where early exit is taken from


def test_early_exit_is_taken_from_the_body_then_header_then_query_then_the_server(server: Any, desk: Desk) -> None:
    body = {"inputs": PROMPT, "prompt": PROMPT, "input_prefix": PROMPT}
    query, header = {"early_exit": "full"}, {"X-Early-Exit": "fixed:layer=6"}
    default = server.service.settings.default
    for path in PATHS:
        assert desk.job(path, body).setting.name == default.name
        assert desk.job(path, body, params=query).setting.name == "full"
        from_header = desk.job(path, body, params=query, headers=header).setting
        assert (from_header.name, from_header.options) == ("fixed", {"layer": 6})
        assert desk.job(path, {**body, "early_exit": None}, headers=header).setting.name == "fixed"
        given = {"early_exit": {"strategy": "full"}}
        for nested in (given, {"parameters": given}, {"parameters": {"parameters": given}}, {"options": given}):
            assert desk.job(path, {**body, **nested}, headers=header).setting.name == "full"
        other = {"early_exit": "fixed"}
        assert desk.job(path, {**body, **given, "parameters": other, "options": other}).setting.name == "full"


def test_early_exit_is_an_object_its_json_or_the_mini_language(server: Any, desk: Desk) -> None:
    said = {"strategy": "fixed", "layer": 6}
    for given in (said, json.dumps(said), "fixed:layer=6", " fixed : layer = 6 "):
        setting = desk.job("/generate", {"inputs": PROMPT, "early_exit": given}).setting
        assert (setting.name, setting.options) == ("fixed", {"layer": 6})
    for given in ({}, {"strategy": None}, "{}"):
        setting = desk.job("/generate", {"inputs": PROMPT, "early_exit": given}).setting
        assert setting.name == server.service.settings.default.name


def test_a_bad_early_exit_is_one_line(server: Any, client: httpx.Client) -> None:
    bad = [
        5, [], "", ":", "full:x", "full:=1", "{", "[1]", '{"strategy": [1]}', {"strategy": 5}, {"strategy": "no such"},
        {"no such option": 1}, {"threshold": [0.9]}, {"": 1}, {"strategy": "full", "x\ny": 1}, "\ud7ff" * 999,
        {"threshold": 10**4000}, {"x" * 4000: 1},
    ]  # fmt: skip
    for given in bad:
        refused(client, "/v1/completions", json.dumps({"prompt": PROMPT, "early_exit": given}).encode())
    for where in ({"headers": {"X-Early-Exit": "{"}}, {"params": {"early_exit": "no such thing"}}):
        assert client.post("/generate", json={"inputs": PROMPT}, **where).status_code == 400


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/api/generate", "/infill", "/no/route\u202e\x9b"])
def test_no_refusal_hides_anything_of_what_was_sent(server: Any, path: str) -> None:
    hostile = "a\x1b[2J\x9b\u202e\u200b\u2028\nb"
    body = {"inputs": PROMPT, "prompt": PROMPT, "input_prefix": PROMPT, "early_exit": {"strategy": hostile, hostile: 1}}
    answer = httpx.post(server.url + path, json=body)
    assert answer.status_code in (404, 400)
    assert not any(map(is_hidden, answer.text))
    error = answer.json()["error"]
    assert r"\u202e" in (error if isinstance(error, str) else error["message"])
    said = json.dumps(refusal(path, ServingError("two\nlines \ud800 \U0001f600")), ensure_ascii=False)
    assert "two lines \\\\ud800 \U0001f600" in said.encode().decode()


# ----------------------------------------------------------------------------------------------- limits of a request


def test_stop_texts_are_few_and_short(client: httpx.Client, desk: Desk) -> None:
    many = [str(number) for number in range(MAX_STOPS + 1)]
    assert desk.job("/v1/completions", {"prompt": PROMPT, "stop": [*many[1:], many[1]]}).stop == tuple(many[1:])
    long = ["~" * 1000 + str(n) for n in range(5)]
    for stop, said in ((many, str(MAX_STOPS)), (long, "5 stop texts of 5005 characters")):
        assert said in refused(client, "/generate", json.dumps({"inputs": "x", "parameters": {"stop": stop}}).encode())


# ----------------------------------------------------------------------------------------- bodies that cannot be read

UNREADABLE = {
    b"": "EOF",
    b'{"inputs": "a"': "EOF",
    b"[1]": "object",
    b"null": "object",
    b'{"inputs": "\xff"}': "unicode",
    b"[" * 100_000: "recursion",
    b'{"inputs": "\\ud800", "prompt": "\\udfff"}': "hex escape",
    b'{"inputs": "a", "prompt": "a", "x": ' + b"1" * 5000 + b"}": "out of range",
}


def test_a_body_that_cannot_be_read_is_one_line_in_every_dialect_whatever_its_header_says(
    client: httpx.Client, desk: Desk
) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    with_body = [path for path, item in paths.items() if "requestBody" in item.get("post", {})]
    assert set(with_body) == {*PATHS, "/v1/chat/completions"} - {"/models/"} | {"/models/{model}"}
    for content, word in UNREADABLE.items():
        assert word in refused(client, "/generate", content)
    for path in PATHS:
        assert "EOF" in refused(client, path, b"{")
        if path != "/infill":
            assert "is missing" in refused(client, path, b"{}")
    for kind in ("application/x-www-form-urlencoded", "text/plain", "nonsense"):
        assert desk.job("/generate", {"inputs": "ä\U0001f600"}, headers={"Content-Type": kind})


# ---------------------------------------------------------------------------------------------------- other refusals


def test_there_is_no_such_route_in_each_dialect(server: Any) -> None:
    assert httpx.post(f"{server.url}/nope").json()["error_type"] == "not_found"
    answer = httpx.post(f"{server.url}/v1/embeddings", json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
    assert "/v1/embeddings" in answer.json()["error"]["message"]
    answer = httpx.get(f"{server.url}/generate")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"error": answer.json()["error"], "error_type": "method_not_allowed"}
    assert "POST" in answer.json()["error"]


def test_a_server_that_is_not_there_says_when_to_come_back(server: Any, refusing: Any) -> None:
    for error, retry in ((LoadingError("it loads."), "5"), (DrainingError("it goes."), None)):
        refusing(error)
        answer = httpx.post(f"{server.url}/generate", json={"inputs": PROMPT})
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, retry)
        assert answer.json() == {"error": str(error), "error_type": error.kind}


def test_a_defect_is_a_500_without_a_traceback(server: Any, refusing: Any) -> None:
    refusing(ZeroDivisionError("secret"))

    async def ask(path: str) -> httpx.Response:
        app = httpx.ASGITransport(make_app(server.service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=app, base_url="http://here") as client:
            return await client.post(path, json={"inputs": PROMPT, "prompt": PROMPT})

    for path in ("/generate", "/v1/completions"):
        answer = asyncio.run(ask(path))
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        assert "log" in str(answer.json()["error"])
