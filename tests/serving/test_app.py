"""Jobs end with their answers, whatever becomes of a client; what a server says of itself; its schema is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi import checks

from harness.decoding.generation import Token
from harness.records import Work
from harness.serving.app import make_app, together
from harness.serving.completions import (
    EarlyExitReport,
    Finished,
    GenerationError,
    Job,
    Prompt,
    Setting,
    Ticket,
    early_exit_report,
)
from harness.serving.config import ServeConfig
from harness.serving.metrics import Metrics
from harness.serving.server import PatientProtocol
from harness.serving.service import Service
from strategies.full import Full
from tests.serving.conftest import Piece


class Played:
    """A ticket with known pieces; an exception among them is raised, a number is waited for, in seconds."""

    def __init__(self, *pieces: Piece | Exception | float) -> None:
        self.pieces, self.cancelled, self.closed = pieces, False, False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                await asyncio.sleep(piece if isinstance(piece, float) else 0)
                if not isinstance(piece, float):
                    yield piece
        finally:
            self.closed = True

    def cancel(self) -> None:
        self.cancelled = True


def token(index: int, exit_layer: int = 4) -> Token:
    return Token(index, 7, f"t{index} ", -0.5, exit_layer, False, 0.1)


def finished(*tokens: Token, options: dict[str, object] | None = None) -> Finished:
    return Finished(
        text="".join(one.text for one in tokens), rest="", ending="length", tokens=tokens, prompt=Prompt((1, 2, 3, 4)),
        prompt_reused=3, setting=Setting("full", options or {}, Full()), kv="none", num_layers=30,
        work=Work(5, 6, layers_executed=40, exit_layers=tuple(one.exit_layer for one in tokens)), queue_s=0.01,
        ttft_s=0.1, total_s=0.5, energy_j=None, energy_source="none",
    )  # fmt: skip


def test_the_report_adds_up_and_is_json_whatever_an_option_is() -> None:
    odd = {"path": Path("agent"), "limit": float("inf"), "many": (1, 2), "name": "a", "off": False, "none": None}
    report = early_exit_report(finished(token(0, 30), token(1, 4), token(2, 14), options=odd))
    assert report["exit_layers"] == [30, 4, 14]
    assert (report["layers_executed"], report["layers_skipped"]) == (48, 42)
    assert report["decode_layers"] == report["counts"]["layers_executed"] == 40
    assert (report["exit_checks"], report["lm_head_evaluations"]) == (5, 6)
    assert (report["prompt_tokens"], report["prompt_tokens_reused"]) == (4, 3)
    assert report["energy_j"] is None  # not measured is not zero
    assert (report["draft_head"], report["stop_rule"], report["stopped_by"], report["drafts"]) == (None,) * 4
    expected = {"path": "agent", "limit": "inf", "many": "(1, 2)", "name": "a", "off": False, "none": None}
    assert json.loads(json.dumps(report, allow_nan=False))["options"] == expected
    assert EarlyExitReport.model_validate(report).model_dump() == report


def test_pieces_of_several_jobs_come_as_they_are_made_and_one_failure_ends_all() -> None:
    async def heard(*tickets: Played) -> list[tuple[int, str]]:
        said = []
        async for place, piece in together(tickets):
            said.append((place, piece.text if isinstance(piece, Token) else "."))
        return said

    async def check() -> None:
        made = token(0), token(1)
        slow, fast = Played(0.02, made[0], 0.04, made[1], finished(*made)), Played(*made, 0.04, finished(*made))
        said = await heard(slow, fast)
        assert [text for place, text in said if place == 0] == ["t0 ", "t1 ", "."]
        assert said[:3] == [(1, "t0 "), (1, "t1 "), (0, "t0 ")]

        for error in (GenerationError("broken."), ZeroDivisionError("a defect")):
            waits, fails = Played(token(0), 60.0), Played(token(0), 0.01, error)
            with pytest.raises(type(error)):
                await heard(waits, fails)
            assert waits.cancelled
            assert fails.cancelled
            assert waits.closed

    asyncio.run(asyncio.wait_for(check(), 5))


# ---------------------------------------------------------------------------------------------- a client that goes away


class Watched:
    """A ticket of the real service that notes what became of it; ``held`` lets no piece through."""

    def __init__(self, ticket: Ticket, held: bool) -> None:
        self.ticket, self.held, self.pieces, self.cancelled = ticket, held, list[Piece](), False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self.held:
            await asyncio.Event().wait()
        async for piece in self.ticket:
            self.pieces.append(piece)
            yield piece

    def cancel(self) -> None:
        self.cancelled = True
        self.ticket.cancel()


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
        ("/generate_stream", {"inputs": "def add(a, b):"}),
        ("/v1/completions", {"prompt": ["def add(a, b):"] * 2, "stream": True}),
    ],
)
def test_a_client_that_goes_away_cancels_its_jobs(
    server: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], held: bool
) -> None:
    tickets: list[Watched] = []
    submit = server.service.submit

    def watch(job: Job) -> Ticket:
        tickets.append(Watched(submit(job), held))
        return tickets[-1]

    monkeypatch.setattr(server.service, "submit", watch)
    asked = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    content, address = json.dumps(body).encode(), urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: len(tickets) == asked and all(held or ticket.pieces for ticket in tickets))
    wait_until(lambda: all(ticket.cancelled for ticket in tickets))
    wait_until(lambda: server.service.running == 0)
    assert not any(isinstance(piece, Finished) for ticket in tickets for piece in ticket.pieces)


LOOK_S, LONG = 0.3, 40_000_000
GET = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """The address of a server that looks often; it answers late, or at ``/long`` at length."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0 if scope["path"] == "/long" else 3 * LOOK_S)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400 if scope["path"] == "/long" else 0):
            await send({"type": "http.response.body", "body": b"x" * (LONG // 400), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr("harness.serving.server.HEAD_S", LOOK_S)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=PatientProtocol, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)


def taken(line: socket.socket) -> int:
    """Bytes until the end of a connection."""
    line.settimeout(10)
    size = 0
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(1 << 20):
            size += len(piece)
    return size


def test_a_connection_without_a_whole_head_is_closed_and_a_late_answer_comes(patient: tuple[str, int]) -> None:
    for head in ("", GET.format("/")[:20]):
        with socket.create_connection(patient) as line:
            line.sendall(head.encode())
            begun = time.monotonic()
            assert taken(line) == 0
            assert time.monotonic() - begun < 6 * LOOK_S
    with socket.create_connection(patient) as line:
        line.sendall(f"{GET.format('/')}{GET.format('/')[:20]}".encode())
        line.settimeout(10)
        assert line.recv(1024).startswith(b"HTTP/1.1 200")
        taken(line)  # the half of a second request is not waited for


@pytest.mark.parametrize("reads", [False, True])
def test_who_takes_nothing_of_an_answer_is_hung_up_on_and_who_reads_slowly_gets_all(
    patient: tuple[str, int], reads: bool
) -> None:
    with socket.socket() as line:
        if not reads:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(patient)
        line.sendall(GET.format("/long").encode())
        size = 0
        for _ in range(20):
            time.sleep(LOOK_S / 5)
            size += len(line.recv(1 << 20)) if reads else 0
        assert (size + taken(line) > LONG) is reads


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
    for state, failure in (("loading", None), ("draining", None), ("failed", "weights of 3 layers are missing.")):
        service = Unready(state, failure)
        answer = get(service, "/health")
        assert (answer.status_code, answer.json()) == (503, {"status": state, "error": failure})
        assert answer.headers["retry-after"] == "1"
        for path in ("/info", "/v1/models", "/models"):
            refused = get(service, path)
            assert refused.status_code == 503
            assert (failure or "") in refused.text


def test_info_is_what_the_service_is(server: Any) -> None:
    service, info = server.service, httpx.get(f"{server.url}/info").json()
    config, facts, exits = service.config, service.info, info["early_exit"]
    assert info["model_id"] == service.model_name
    assert info["version"] == version("early-exit-harness")
    assert (info["model_dtype"], info["model_device_type"]) == (service.dtype, service.device)
    assert info["max_concurrent_requests"] == config.batch_size + config.max_queue
    assert info["max_input_tokens"] < info["max_total_tokens"] <= facts.max_positions
    assert info["max_total_tokens"] <= info["max_input_tokens"] + config.max_new_tokens
    assert (exits["num_layers"], exits["exit_points"]) == (facts.num_layers, list(facts.exit_points))
    assert exits["kv"] == config.kv
    assert exits["weights"]["kind"] in ("pretrained", "tuned", "random")
    assert exits["weights"]["source"]
    energy = exits["energy"]
    assert energy["source"] == service.energy_source
    assert energy["measured"] == (energy["source"] in ("nvml", "rapl", "soc"))
    strategies = {one["name"]: one for one in exits["strategies"]}
    assert len(strategies) == len(exits["strategies"])
    assert "full" in strategies
    assert [one["name"] for one in exits["strategies"] if one["default"]] == [exits["default"]["strategy"]]
    for name, one in strategies.items():
        assert one["limits"].keys() | one["descriptions"].keys() <= one["options"].keys()
        for option, (low, high) in one["limits"].items():
            assert one["options"][option] is None or low <= one["options"][option] <= high
        setting = service.settings.resolve({"strategy": name, **one["options"]})
        assert setting.name == name.partition(":")[0]
        assert one["options"].items() <= setting.options.items()


def test_metrics_can_be_scraped(server: Any) -> None:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    values = {sample.name: sample.value for sample in samples if not sample.labels}
    assert values["early_exit_queue_size"] == server.service.waiting
    assert values["early_exit_running_requests"] == server.service.running
    open_metrics = httpx.get(f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


# ---------------------------------------------------------------------------------------------- the schema of the API

EXAMPLES = 160
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
    assert all({200, 422} <= seen[path] for path in ("/generate", "/generate_stream", "/v1/completions")), seen
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert all("description" in field or "$ref" in str(field) for field in schemas["OpenAI"]["properties"].values())
