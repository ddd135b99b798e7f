"""Limits on the size of a request's body and on the time it takes to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from harness.serving.failures import ServingError
from harness.serving.http.refusals import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyTooLargeError", "CappedBody", "SlowBodyError", "header_values", "refuse"]

SWALLOW_S, SWALLOWED_BODIES = 3.0, 16
"""How long a refused body is still read, in seconds, and how far, in multiples of the cap."""

GONE: Message = {"type": "http.disconnect"}
"""Message for the reader of a refused body; its answer is not sent."""


class SlowBodyError(ServingError):
    """The body took longer to arrive than a whole request may take."""

    status = 408
    kind = "timeout"


class BodyTooLargeError(ServingError):
    """The body has more bytes than one request may have."""

    status = 413
    kind = "too_large"


class CappedBody:
    """Caps the body's size, whether announced or not, and the time it takes to arrive."""

    def __init__(self, app: ASGIApp, cap: int, patience_s: float) -> None:
        self._app, self._cap, self._patience_s = app, cap, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        announced = header_values(scope, b"content-length")
        if any(not length.isdecimal() or int(length[:19]) > self._cap for length in announced):
            await self._swallow(receive)
            return await refuse(scope, send, self._too_large())
        return await self._capped(scope, receive, send)

    async def _capped(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + self._patience_s
        read, complete, started = 0, False, False
        refused: ServingError | None = None

        async def received() -> Message:
            nonlocal read, complete, refused
            if refused is not None:
                return GONE
            if complete:  # only the client's disconnection can follow, which has no deadline
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refused = self._too_slow()
                return GONE
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._cap:
                refused = self._too_large()
            return message if refused is None else GONE

        async def sent(message: Message) -> None:
            nonlocal started
            if refused is None or started:
                started = True
                await send(message)

        try:
            await self._app(scope, received, sent)
        except Exception:
            if refused is None or started:
                raise
        if refused is not None and not started:
            await refuse(scope, send, refused)

    async def _swallow(self, receive: Receive) -> None:
        """Keep reading for a moment: closing a connection with an unread body resets it, and the answer is lost."""
        read, more = 0, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWALLOW_S):
                while more and read <= SWALLOWED_BODIES * self._cap:
                    message = await receive()
                    read += len(message.get("body", b""))
                    more = message.get("more_body", False)

    def _too_large(self) -> ServingError:
        return BodyTooLargeError(
            f"the request has more than {self._cap} bytes. Send less, or start the server with --max-body-bytes."
        )

    def _too_slow(self) -> ServingError:
        return SlowBodyError(f"the request was not complete within {self._patience_s:g} s. Send it faster.")


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Return every value of a header; its name in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def refuse(scope: Scope, send: Send, error: ServingError, headers: dict[str, str] | None = None) -> None:
    """Answer a request with an error, in the dialect of its route."""
    body = json.dumps(refusal(scope["path"], error)).encode()
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
