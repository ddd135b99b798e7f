"""A connection lives while it has something to say."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from harness.serving.http import guards as connections

LOOK_S = 0.4
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def slow(scope: Any, receive: Any, send: Any) -> None:
    import asyncio

    await asyncio.sleep(3 * LOOK_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def long(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(400):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def app() -> Any:
    return slow


@pytest.fixture
def address(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(connections, "HEAD_S", LOOK_S)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=connections.PatientProtocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)


def seconds_open(line: socket.socket) -> float:
    begun = time.monotonic()
    line.settimeout(10)
    assert line.recv(1024) == b""
    return time.monotonic() - begun


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: lo"])
def test_a_connection_without_a_request_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as line:
        line.sendall(sent)
        assert LOOK_S / 2 < seconds_open(line) < 3 * LOOK_S


def test_a_request_is_answered_however_long_it_takes_and_half_a_second_one_is_not_waited_for(
    address: tuple[str, int],
) -> None:
    with socket.create_connection(address) as line:
        line.sendall(REQUEST)
        answer = b""
        while not answer.endswith(b"ok"):
            answer += line.recv(1024)
        assert answer.startswith(b"HTTP/1.1 200")
        line.sendall(REQUEST[:20])
        assert seconds_open(line) < 4 * LOOK_S


@pytest.mark.parametrize("app", [long])
def test_who_takes_nothing_of_an_answer_is_hung_up_on(address: tuple[str, int], app: Any) -> None:
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(address)
        line.sendall(REQUEST)
        time.sleep(4 * LOOK_S)
        line.settimeout(10)
        taken = 0
        with contextlib.suppress(ConnectionError):  # reset: what was left is thrown away
            while piece := line.recv(1 << 20):
                taken += len(piece)
        assert taken < 40_000_000


@pytest.mark.parametrize("app", [long])
def test_who_reads_slowly_but_reads_gets_all_of_it(address: tuple[str, int], app: Any) -> None:
    with socket.create_connection(address) as line:
        line.sendall(REQUEST)
        taken, end = 0, time.monotonic() + 3 * LOOK_S
        while piece := line.recv(1 << 20):
            taken += len(piece)
            if time.monotonic() < end:
                time.sleep(LOOK_S / 20)
            if taken > 40_000_000:
                break
        assert taken > 40_000_000
