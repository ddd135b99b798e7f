"""Jobs end with their answers: nothing is lost, and nothing is left behind when a client goes away."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness.decoding.generation import Token
from harness.records import Work
from harness.serving.failures import GenerationError, ServingError
from harness.serving.http.answers import early_exit_report, stream, stream_all, whole_all
from harness.serving.http.schemas import EarlyExitReport
from harness.serving.jobs import Finished, Job, Ticket

Piece = Token | Finished


class Connected:
    """A request whose client stays."""

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError


class Played:
    """A ticket with known pieces; an exception among them is raised, a number is waited for, in seconds."""

    def __init__(self, *pieces: Piece | Exception | float) -> None:
        self.pieces, self.cancelled, self.closed = pieces, False, False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                else:
                    await asyncio.sleep(0)
                    yield piece
        finally:
            self.closed = True

    def cancel(self) -> None:
        self.cancelled = True


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


def token(index: int, exit_layer: int = 4) -> Token:
    return Token(index, 7, f"t{index} ", -0.5, exit_layer, False, 0.1)


@pytest.fixture
def finished(server: Any) -> Callable[..., Finished]:
    def make(tokens: Sequence[Token], **changes: Any) -> Finished:
        text = "".join(one.text for one in tokens)
        done = Finished(
            text=text, rest="", ending="length", tokens=tuple(tokens), prompt=make_prompt(server),
            prompt_reused=3, setting=server.service.settings.default, kv=server.service.config.kv, num_layers=30,
            work=Work(5, 6, layers_executed=40, exit_layers=tuple(one.exit_layer for one in tokens)), queue_s=0.01,
            ttft_s=0.1, total_s=0.5, energy_j=None, energy_source="none",
        )  # fmt: skip
        return replace(done, **changes)

    return make


def make_prompt(server: Any) -> Any:
    return server.service.encode("def add(a, b):", None, truncate=False)


def lines(place: int, piece: Piece) -> list[bytes]:
    return [f"{place}:{piece.text if isinstance(piece, Token) else '.'}".encode()]


def failed(error: ServingError) -> list[bytes]:
    return [f"!{error.status}".encode()]


async def sent(response: Any, written: list[bytes] | None = None) -> list[bytes]:
    written = [] if written is None else written
    async for line in response.body_iterator:
        written.append(line)  # not a comprehension: what came before a failure counts
    return written


def test_the_report_adds_up(finished: Callable[..., Finished]) -> None:
    done = finished([token(0, 30), token(1, 4), token(2, 14)])
    report = EarlyExitReport.model_validate(early_exit_report(done))
    assert report.exit_layers == [30, 4, 14]
    assert (report.layers_executed, report.layers_skipped) == (48, 42)
    assert report.layers_executed + report.layers_skipped == 3 * report.num_layers
    assert report.decode_layers == report.counts["layers_executed"] == 40
    assert (report.exit_checks, report.lm_head_evaluations) == (5, 6)
    assert report.energy_j is None  # not measured is not zero


def test_the_report_is_json_whatever_an_options_value_is(finished: Callable[..., Finished]) -> None:
    done = finished([token(0)])
    odd = {"path": Path("agent"), "limit": float("inf"), "many": (1, 2), "name": "a", "off": False, "none": None}
    report = early_exit_report(replace(done, setting=replace(done.setting, options=odd)))
    expected = {"path": "agent", "limit": "inf", "many": "(1, 2)", "name": "a", "off": False, "none": None}
    assert json.loads(json.dumps(report, allow_nan=False))["options"] == expected
    EarlyExitReport.model_validate(report)


def test_several_endings_come_in_order_and_one_failure_ends_all(finished: Callable[..., Finished]) -> None:
    async def check() -> None:
        slow, fast = Played(token(0), 0.05, finished([token(0)])), Played(token(0), finished([token(0), token(1)]))
        endings = await whole_all(Connected(), [slow, fast])  # type: ignore[arg-type]
        assert [len(done.tokens) for done in endings] == [1, 2]

        waits, fails = Played(token(0), 60.0), Played(token(0), GenerationError("broken."))
        with pytest.raises(GenerationError):
            await whole_all(Connected(), [waits, fails])  # type: ignore[arg-type]
        assert waits.cancelled
        assert fails.cancelled
        assert waits.closed

    asyncio.run(asyncio.wait_for(check(), 5))


def test_streams_are_interleaved_as_tokens_are_made(finished: Callable[..., Finished]) -> None:
    async def check() -> list[bytes]:
        made = [token(0), token(1)]
        slow = Played(0.02, made[0], 0.04, made[1], finished(made))
        fast = Played(made[0], 0.04, made[1], finished(made))
        answer = await stream_all([slow, fast], lines, failed)
        written = await sent(answer)
        assert [line for line in written if line.startswith(b"0")] == [b"0:t0 ", b"0:t1 ", b"0:."]
        assert [line for line in written if line.startswith(b"1")] == [b"1:t0 ", b"1:t1 ", b"1:."]
        return written

    written = asyncio.run(asyncio.wait_for(check(), 5))
    assert written[0] == b"1:t0 "
    assert written.index(b"0:t0 ") < written.index(b"1:t1 ")


def test_a_failure_before_the_first_token_is_raised_and_one_after_it_is_sent(
    finished: Callable[..., Finished],
) -> None:
    async def check() -> None:
        early = Played(GenerationError("broken."))
        with pytest.raises(GenerationError):
            await stream(early, lambda piece: lines(0, piece), failed)
        assert early.cancelled

        waits, fails = Played(token(0), 60.0), Played(token(0), 0.01, GenerationError("broken."))
        written = await sent(await stream_all([waits, fails], lines, failed))
        assert sorted(written[:-1]) == [b"0:t0 ", b"1:t0 "]
        assert written[-1] == b"!424"
        assert waits.closed

    asyncio.run(asyncio.wait_for(check(), 5))


def test_a_defect_half_way_is_sent_and_raised() -> None:
    async def check() -> None:
        answer = await stream(Played(token(0), ZeroDivisionError("secret")), lambda piece: lines(0, piece), failed)
        written: list[bytes] = []
        with pytest.raises(ZeroDivisionError):
            await sent(answer, written)
        assert written == [b"0:t0 ", b"!500"]

    asyncio.run(check())


# --- a client that goes away ---


def leave(server: Any, path: str, body: dict[str, Any], once: Callable[[], bool]) -> None:
    """Send a request over a bare socket, wait until something is so, and hang up."""
    content = json.dumps(body).encode()
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(once)


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
        ("/", {"inputs": "def add(a, b):", "stream": True}),
        ("/v1/completions", {"prompt": "def add(a, b):"}),
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
    leave(server, path, body, lambda: len(tickets) == asked and all(held or ticket.pieces for ticket in tickets))
    wait_until(lambda: all(ticket.cancelled for ticket in tickets))
    wait_until(lambda: server.service.running == 0)
    assert not any(isinstance(piece, Finished) for ticket in tickets for piece in ticket.pieces)
