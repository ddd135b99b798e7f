"""Jobs end with their answers, whatever becomes of a client; what a server says of itself; its schema is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks
from starlette.requests import ClientDisconnect

from harness.decoding.generation import Token
from harness.serving.app import make_app
from harness.serving.completions import EarlyExitReport, Finished, Job, early_exit_report
from harness.serving.config import ServeConfig
from harness.serving.metrics import Metrics
from harness.serving.service import Service
from harness.serving.worker import Answer
from tests.serving.conftest import DONE, Piece, listening


def test_the_report_adds_up_and_is_json_whatever_an_option_is() -> None:
    odd = {"path": Path("agent"), "limit": float("inf"), "many": (1, 2), "name": "a", "off": False, "none": None}
    report = early_exit_report(replace(DONE, setting=replace(DONE.setting, options=odd), energy_j=None))
    assert report["exit_layers"] == [12, 4, 4]
    assert (report["layers_executed"], report["layers_skipped"]) == (20, 16)
    assert report["decode_layers"] == report["counts"]["layers_executed"] == 11
    assert (report["exit_checks"], report["lm_head_evaluations"]) == (2, 2)
    assert (report["prompt_tokens"], report["prompt_tokens_reused"]) == (5, 2)
    assert report["energy_j"] is None  # not measured is not zero
    assert (report["draft_head"], report["stop_rule"], report["stopped_by"], report["drafts"]) == (None,) * 4
    expected = {"path": "agent", "limit": "inf", "many": "(1, 2)", "name": "a", "off": False, "none": None}
    assert json.loads(json.dumps(report, allow_nan=False))["options"] == expected
    assert EarlyExitReport.model_validate(report).model_dump() == report


# ---------------------------------------------------------------------------------------------- a client that goes away


class Watched:
    """An answer of the real service that notes what became of it; ``held`` lets no piece through."""

    def __init__(self, answer: Answer, held: bool) -> None:
        self.answer, self.held, self.pieces, self.cancelled = answer, held, list[Piece](), False
        self.put = answer.put

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        async for place, piece in self.answer:
            if not (self.held and isinstance(piece, Token | Finished)):
                self.pieces.append(piece)
                yield place, piece

    def cancel(self) -> None:
        self.cancelled = True
        self.answer.cancel()


def wait_until(so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not so():
        assert time.monotonic() < give_up
        time.sleep(0.002)


@pytest.mark.parametrize("held", [False, True], ids=["after the first token", "before the first token"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "def add(a, b):"}),
        ("/v1/completions", {"prompt": ["def add(a, b):"] * 2, "stream": True}),
    ],
)
def test_a_client_that_goes_away_cancels_its_jobs(
    server: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], held: bool
) -> None:
    answers: list[Watched] = []
    submit = server.service.submit

    def watch(jobs: Sequence[Job]) -> Any:
        answers.append(Watched(submit(jobs), held))
        return answers[-1]

    monkeypatch.setattr(server.service, "submit", watch)
    content, address = json.dumps(body).encode(), urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: bool(answers) and bool(held or answers[0].pieces))
    wait_until(lambda: answers[0].cancelled)
    wait_until(lambda: server.service.running == 0)
    assert not any(isinstance(piece, Finished) for piece in answers[0].pieces)


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions", "/api/generate", "/completion"])
def test_a_client_that_goes_away_after_the_first_token_is_no_defect(server: Any, changed: Any, path: str) -> None:
    """The watch may say so between the first token and the stream."""

    def gone(piece: Any) -> Any:
        if isinstance(piece, Finished) or piece.index:
            raise ClientDisconnect
        return piece

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(server.service))  # raises what an application raises
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, json={"inputs": "x = ", "prompt": "x = ", "stream": True})

    changed(gone)
    assert asyncio.run(send()).status_code == 200


LOOK_S, BYTES = 0.3, 40_000_000
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_connection_on_which_nothing_moves_is_ended_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(3 * LOOK_S)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for more in [True] * 400 + [False]:
                await send({"type": "http.response.body", "body": b"x" * (BYTES // 400), "more_body": more})

    def size(line: socket.socket, pause_s: float) -> int:
        found = 0
        with contextlib.suppress(ConnectionError):
            while piece := line.recv(1 << 21):
                found += len(piece)
                time.sleep(pause_s)
        return found

    monkeypatch.setattr("harness.serving.server.HEAD_S", LOOK_S)
    with listening(app) as url, contextlib.ExitStack() as stack:
        lines = [stack.enter_context(socket.socket()) for _ in range(4)]
        for line, sent in zip(lines, (b"", GET[:20], GET, GET), strict=True):
            if line is lines[2]:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", urlsplit(url).port))
            line.sendall(sent)
            line.settimeout(10)
        begun = time.monotonic()
        assert size(lines[3], LOOK_S / 20) > BYTES, "late, and read slowly"
        time.sleep(max(0.0, begun + 8 * LOOK_S - time.monotonic()))
        assert size(lines[2], 0) < BYTES, "nothing was taken"
        assert max(size(line, 0) for line in lines[:2]) < 1000, "no head, or half a head"


# ----------------------------------------------------------------------------------------- what a server says of itself


class Unready(Service):
    """A service before or after its time: what is known then, and nothing else."""

    model_name = "some-model"

    def __init__(self, state: Any, failure: str | None = None) -> None:
        self.config, self.metrics = ServeConfig(), Metrics()
        self.state, self.failure, self.weights_source = state, failure, ""


def get(service: Service, path: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(send())


def test_a_ready_server_is_healthy_and_another_says_503_and_why(server: Any) -> None:
    answer = httpx.get(f"{server.url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "error": None})
    head = httpx.head(f"{server.url}/health")
    assert (head.status_code, head.content) == (200, b"")
    info, service = httpx.get(f"{server.url}/info").json(), server.service
    assert info["max_input_tokens"] < info["max_total_tokens"] <= service.info.max_positions
    assert info["early_exit"]["exit_points"] == list(service.info.exit_points)
    listed = info["early_exit"]["strategies"]
    assert [one["name"] for one in listed if one["default"]] == [info["early_exit"]["default"]["strategy"]]
    for one in listed:  # what is listed can be asked for
        setting = service.settings.resolve({"strategy": one["name"], **one["options"]})
        assert one["options"].items() <= setting.options.items()
    for state, failure in (("loading", None), ("draining", None), ("failed", "weights of 3 layers are missing.")):
        service = Unready(state, failure)
        answer = get(service, "/health")
        assert (answer.status_code, answer.json()) == (503, {"status": state, "error": failure})
        assert answer.headers["retry-after"] == "1"
        for path in ("/info", "/v1/models", "/models"):
            refused = get(service, path)
            assert refused.status_code == 503
            assert (failure or "") in refused.text


# ---------------------------------------------------------------------------------------------- the schema of the API

EXAMPLES = 90
"""In all, shared by the operations."""

MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def short(body: Any, stream: bool) -> Any:
    """Return a body that asks for two tokens in every dialect, in one piece or as a stream, whatever else is in it."""
    if not isinstance(body, dict):
        return body
    limits = {"parameters": {"max_new_tokens": 2}, "options": {"num_predict": 2}}
    inside = {key: (body[key] if isinstance(body.get(key), dict) else {}) | limits[key] for key in limits}
    return {**body, "stream": stream, "max_tokens": 2, "n_predict": 2, **inside}


def statuses_of(operation: Any, mode: Any, url: str, examples: int) -> set[int]:
    """Send what is generated from the schema of an operation, and return the statuses of the answers."""
    statuses: set[int] = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), stream=st.booleans())
    def send(case: Any, stream: bool) -> None:
        case.body = short(case.body, stream)
        statuses.add(case.call_and_validate(base_url=url, checks=CHECKS).status_code)

    send()
    return statuses


@pytest.mark.slow
def test_every_post_route_answers_as_its_schema_says(server: Any) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [made.ok() for made in api.get_all_operations() if made.ok().method == "post"]
    examples = max(EXAMPLES // (len(operations) * len(MODES)), 5)
    seen = {
        operation.path: set[int]().union(*(statuses_of(operation, mode, server.url, examples) for mode in MODES))
        for operation in operations
    }
    assert {"/generate", "/generate_stream", "/", "/models/{model}", "/v1/completions", "/completions"} <= seen.keys()
    # Both sides of the schema were met. Other dialects may take everything, or nothing of what chance wrote.
    assert all({200, 400} <= seen[path] for path in ("/generate", "/generate_stream", "/v1/completions")), seen
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert all("description" in field or "$ref" in str(field) for field in schemas["OpenAI"]["properties"].values())
