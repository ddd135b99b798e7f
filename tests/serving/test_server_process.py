"""The server as a process: it begins with one line, refuses with one line, and ends when it is told to.

The process is ``harness serve`` on a tiny model, with a strategy from outside that takes as long to load and to decide
as a test says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.serving.metrics import KINDS

DAWDLE = """
import os
import time
from dataclasses import dataclass

import torch

from harness.contracts import Strategy
from harness.errors import ModelError

loaded = []


def work(seconds):  # in torch, not in a sleep: what is torn down under torch's feet aborts
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(300, 300) @ torch.ones(300, 300)


@dataclass(frozen=True)
class Dawdle(Strategy):
    def exit_points(self, model):
        return model.exit_points[:1]

    def start(self, model, batch):
        if not loaded:
            loaded.append(True)
            work(float(os.environ.get("LOAD_S", 0)))
            if os.environ.get("LOAD_ERROR"):
                raise ModelError(os.environ["LOAD_ERROR"])
        return self

    def should_exit(self, view):
        work(float(os.environ.get("TOKEN_S", 0.005)))
        return view.position < 0
"""
ROOT = Path(__file__).resolve().parents[2]

TOKENS = 100
"""Of a completion that is still running when something happens to its server."""

LONG = {"inputs": "def add(a, b):", "parameters": {"max_new_tokens": TOKENS}}
SHORT = {"inputs": "def add(a, b):", "parameters": {"max_new_tokens": 3}}


class Process:
    """A running server. ``said`` grows with its lines on stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said = process, list[str]()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(line.rstrip("\n") for line in iter(self.process.stderr.readline, ""))

    def line(self, start: str, within_s: float = 60) -> str:
        """Wait for a line that starts so."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            for line in list(self.said):
                if line.startswith(start):
                    return line
            assert self.process.poll() is None or self.reader.is_alive(), self.said
            time.sleep(0.02)
        raise AssertionError(f"no line {start!r} in {self.said}")

    @property
    def url(self) -> str:
        return self.line("listening").split()[2].rstrip(",")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def end(self, number: int | None = None, within_s: float = 60) -> int:
        """Send a signal, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(within_s)
        self.reader.join(5)
        return code


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def launch(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[contextlib.ExitStack], Start]:
    """What makes what starts a server with arguments; environment variables say how slow its strategy is."""
    site = tmp_path_factory.mktemp("site")
    (site / "dawdle.py").write_text(DAWDLE)
    facts = site / "dawdle-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: dawdle\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[harness.strategies]\ndawdle = dawdle:Dawdle\n")
    options = ("--strategy", "dawdle", "--threads", 1, "--energy", "none", "--max-new-tokens", TOKENS, "--port", 0)
    command = [sys.executable, "-m", "harness.cli", "serve", "--model", tiny_llama, *options]

    def starter(stack: contextlib.ExitStack) -> Start:
        def start(*arguments: object, **environment: object) -> Process:
            process = subprocess.Popen(
                list(map(str, [*command, *arguments])),
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, site))),
                    **{name: str(value) for name, value in environment.items()},
                },
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Process(process)

        return start

    return starter


@pytest.fixture
def start(launch: Callable[[contextlib.ExitStack], Start]) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:
        yield launch(stack)


KEY = "0123456789abcdef-shared"


@pytest.fixture(scope="module")
def steady(
    launch: Callable[[contextlib.ExitStack], Start], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One server with a key, for everything that does not end it."""
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    with contextlib.ExitStack() as stack:
        process = launch(stack)("--api-key-file", file)
        process.line("ready")
        yield process


@pytest.fixture
def client(steady: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=steady.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as client:
        yield client


class Stream:
    """A stream of a completion in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.broken: Exception | None = None
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self.thread.start()

    def _read(self, url: str) -> None:
        try:
            with httpx.stream("POST", f"{url}/generate_stream", json=LONG, timeout=30) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        self.events.append(json.loads(line.removeprefix("data:")))
                        self.begun.set()
        except httpx.HTTPError as error:
            self.broken = error

    @property
    def finished(self) -> bool:
        return bool(self.events) and self.events[-1].get("generated_text") is not None

    @property
    def told(self) -> bool:
        """Whether it ended with an error that says so."""
        return bool(self.events) and self.events[-1].get("error_type") in KINDS


def streams(url: str, count: int) -> list[Stream]:
    """Return streams that have all begun and are not done."""
    made = [Stream(url) for _ in range(count)]
    for one in made:
        assert one.begun.wait(20), one.broken
    return made


@pytest.mark.slow
def test_it_listens_while_it_loads_and_ends_when_its_answers_have(start: Start) -> None:
    server = start("--drain-s", 60, LOAD_S=1, TOKEN_S=0.005)
    loading = httpx.get(f"{server.url}/health")
    assert (loading.status_code, loading.json()["status"]) == (503, "loading")
    assert httpx.post(f"{server.url}/generate", json=SHORT).status_code == 503
    said = server.line("ready")
    ready = httpx.get(f"{server.url}/health")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    info = httpx.get(f"{server.url}/info").json()
    assert info["model_id"] in said
    assert info["early_exit"]["default"]["strategy"] in said
    running = streams(server.url, 4)
    with contextlib.ExitStack() as stack:
        for sent in (b"", b"POST /generate HTTP/1.1\r\nHost: local"):  # neither holds it up
            stack.enter_context(socket.create_connection(server.address)).sendall(sent)
        assert server.end(signal.SIGTERM, within_s=90) == 0
    for one in running:
        one.thread.join(10)
        assert one.broken is None
        assert one.finished, one.events[-1:]
        assert len([event for event in one.events if event.get("token")]) >= TOKENS - 1
    assert len(server.said) == 2, server.said
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(server.address)


@pytest.mark.slow
def test_what_does_not_finish_in_time_is_told_so(start: Start) -> None:
    server = start("--drain-s", 0.3, TOKEN_S=0.1)
    server.line("ready")
    running = streams(server.url, 2)
    begun = time.monotonic()
    assert server.end(signal.SIGINT) == 0
    assert time.monotonic() - begun < 15
    for one in running:
        one.thread.join(10)
        assert one.broken is None
        assert one.told or one.finished, one.events[-1:]
    assert any(one.told for one in running)


@pytest.mark.slow
def test_a_second_signal_stops_at_once(start: Start) -> None:
    server = start("--drain-s", 600, TOKEN_S=0.5)
    server.line("ready")
    running = streams(server.url, 2)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    begun = time.monotonic()
    assert server.end(signal.SIGTERM) == 130
    assert time.monotonic() - begun < 15
    for one in running:
        one.thread.join(10)
        # no half answer passes for a whole one: the connection breaks within its body
        assert one.broken is not None or one.told or one.finished
    assert "Traceback" not in "\n".join(server.said)
    server = start(LOAD_S=30)  # a signal while it loads
    server.line("listening")
    assert server.end(signal.SIGINT) == 0


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_it(start: Start) -> None:
    server = start(LOAD_S=0.3, LOAD_ERROR="model.safetensors holds 3 layers,\n not 30. Fetch it again.")
    assert server.end() == 2
    assert server.said[-1] == "error: model.safetensors holds 3 layers, not 30. Fetch it again."
    assert len([line for line in server.said if line.startswith("error:")]) == 1
    assert "Traceback" not in "\n".join(server.said)


def test_the_right_key_opens_and_a_wrong_one_does_not(steady: Process, client: httpx.Client) -> None:
    assert client.post("/generate", json=SHORT).status_code == 200
    wrong = httpx.post(f"{steady.url}/generate", json=SHORT, headers={"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.json()["error_type"]) == (401, "unauthorized")
    assert httpx.post(f"{steady.url}/generate", json=SHORT).status_code == 401
    assert httpx.get(f"{steady.url}/health").status_code == 200
    assert "server" not in wrong.headers


def test_a_body_of_ten_megabytes_is_refused_and_the_next_one_served(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(160):
            yield b"x" * 65536

    for content, after in ((b"x" * 10_000_000, "keep-alive"), (b"x" * 10_000_000, "close"), (chunks(), "keep-alive")):
        headers = {"Content-Type": "application/json", "Connection": after}
        answer = client.post("/generate", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error_type"] == "too_large"
    assert client.post("/generate", json=SHORT).status_code == 200


def test_no_prompt_and_no_query_string_reaches_the_log(steady: Process, client: httpx.Client) -> None:
    secret = "a-secret-that-nobody-logs"
    client.post(f"/generate?token={secret}", json={**SHORT, "inputs": secret})
    client.post(f"/{secret}")
    time.sleep(0.2)
    assert secret not in "\n".join(steady.said)
    assert secret not in client.get("/metrics").text
