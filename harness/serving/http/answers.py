"""Waiting for completions while the client stays connected, and what every answer reports on early exit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypedDict, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from harness.decoding.generation import Token
from harness.serving.failures import ServingError
from harness.serving.http.schemas import DraftReport
from harness.serving.jobs import Finished, Ticket

Piece = Token | Finished


class TokenReport(TypedDict):
    """How a token came about; see the schemas of the same names."""

    exit_layer: int
    drafted_at: int | None
    accepted: bool | None


T = TypeVar("T")


async def whole(request: Request, ticket: Ticket) -> Finished:
    """Wait for the ending; a client that goes away cancels its job.

    Raises:
        ServingError: it failed.
        ClientDisconnect: the client has disconnected.
    """
    return (await whole_all(request, [ticket]))[0]


async def whole_all(request: Request, tickets: Sequence[Ticket]) -> list[Finished]:
    """Wait for all endings, in the order of the tickets; if one fails the others are cancelled.

    Raises:
        ServingError: the first failure.
        ClientDisconnect: the client has disconnected.
    """
    endings = [asyncio.ensure_future(_ending(ticket)) for ticket in tickets]
    try:
        return await _unless_gone(request, asyncio.gather(*endings))
    finally:
        for ticket in tickets:
            ticket.cancel()
        await _cancelled(endings)


async def stream(
    ticket: Ticket,
    lines: Callable[[Piece], list[bytes]],
    failed: Callable[[ServingError], list[bytes]],
    media_type: str = "text/event-stream",
    *,
    request: Request | None = None,
) -> StreamingResponse:
    """Answer piece by piece as tokens are made.

    The status is chosen when the first piece is there, so that a refusal has its own status; a failure after
    it becomes an event. A client that goes away cancels its job.

    Args:
        ticket: the submitted job.
        lines: what to send for a token, or for the ending; complete events with their line breaks.
        failed: what to send when it fails half-way.
        media_type: of the answer.
        request: where given, a disconnection before the first token is noticed at once, not at that token.

    Raises:
        ServingError: it failed before its first token.
        ClientDisconnect: the client has disconnected.
    """
    return await stream_all([ticket], lambda _, piece: lines(piece), failed, media_type, request=request)


async def stream_all(
    tickets: Sequence[Ticket],
    lines: Callable[[int, Piece], list[bytes]],
    failed: Callable[[ServingError], list[bytes]],
    media_type: str = "text/event-stream",
    *,
    request: Request | None = None,
) -> StreamingResponse:
    """Answer several jobs in one stream, interleaved as their tokens are made; the first failure ends all of them.

    As :func:`stream`, but ``lines`` is also given the ticket's place in the list.
    """
    pieces = _together(tickets)
    try:
        first = await _unless_gone(request, _next(pieces))
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise

    async def body() -> AsyncIterator[bytes]:
        try:
            if first is not None:
                for line in lines(*first):
                    yield line
            async for place, piece in pieces:
                for line in lines(place, piece):
                    yield line
        except ServingError as error:
            for line in failed(error):
                yield line
        except Exception:  # a defect: the client must see that the answer is not whole, the log has the traceback
            for line in failed(ServingError("the server failed; see its log.")):
                yield line
            raise

    return _Stream(tickets, body(), media_type)


class _Stream(StreamingResponse):
    """A stream that cancels unfinished jobs, however it ends."""

    def __init__(self, tickets: Sequence[Ticket], body: AsyncIterator[bytes], media_type: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(body, media_type=media_type, headers=headers)
        self.tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for ticket in self.tickets:
                ticket.cancel()


def early_exit_report(done: Finished) -> dict[str, Any]:
    """Return ``x_early_exit``: the effective setting and what it did, per token and in all."""
    work, lossless = done.work, done.setting.lossless
    executed = sum(work.exit_layers)
    return {
        "strategy": done.setting.name,
        "options": {name: _plain(value) for name, value in done.setting.options.items()},
        "kv": done.kv,
        "decode": str(done.setting.decode),
        "draft_max": None if lossless is None else lossless.draft_max,
        "draft_head": None if lossless is None else str(lossless.head),
        "stop_rule": None if done.setting.stop is None else done.setting.stop.written,
        "stopped_by": done.stopped_by or None,
        "drafts": DraftReport.model_validate(work) if work.lossless else None,
        "num_layers": done.num_layers,
        "exit_layers": list(work.exit_layers),
        "layers_executed": executed,
        "layers_skipped": len(work.exit_layers) * done.num_layers - executed,
        "decode_layers": work.layers_executed,
        "exit_checks": work.exit_checks,
        "lm_head_evaluations": work.lm_head_evaluations,
        "counts": work.counts,
        "ending": done.ending,
        "prompt_tokens": len(done.prompt.token_ids),
        "prompt_tokens_reused": done.prompt_reused,
        "prompt_tokens_truncated": done.prompt.truncated,
        "suffix": done.prompt.suffix,
        "queue_s": round(done.queue_s, 6),
        "ttft_s": round(done.ttft_s, 6),
        "total_s": round(done.total_s, 6),
        "energy_j": None if done.energy_j is None else round(done.energy_j, 6),
        "energy_source": done.energy_source,
    }


def token_report(token: Token) -> TokenReport:
    """Return what an answer says of one token, in any dialect."""
    return {"exit_layer": token.exit_layer, "drafted_at": token.drafted_at, "accepted": token.accepted}


def _plain(value: object) -> str | int | float | bool | None:
    """Return an option's value as JSON has it: a path or an infinite number as its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)


async def _ending(ticket: Ticket) -> Finished:
    async for piece in ticket:
        if isinstance(piece, Finished):
            return piece
    raise AssertionError("a ticket ends with its ending")


async def _next(pieces: AsyncIterator[T]) -> T | None:
    return await anext(pieces, None)


async def _together(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield each piece with the index of its ticket."""
    sources = [aiter(ticket) for ticket in tickets]
    waiting = {asyncio.ensure_future(_next(source)): place for place, source in enumerate(sources)}
    try:
        while waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in waiting if task.done()]:
                place = waiting.pop(task)
                piece = task.result()
                if piece is not None:
                    yield place, piece
                    waiting[asyncio.ensure_future(_next(sources[place]))] = place
    finally:
        await _cancelled(list(waiting))


async def _unless_gone(request: Request | None, awaited: Awaitable[T]) -> T:
    """Wait, and stop when the client disconnects."""
    if request is None:
        return await awaited
    wanted = asyncio.ensure_future(awaited)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        await _cancelled([wanted, gone])


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
