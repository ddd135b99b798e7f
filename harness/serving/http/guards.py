"""Checks that a request must pass before it reaches a route: host, origin, key, size.

A server on loopback is still within reach of every web page that a browser on this machine opens, so pages are
refused by their ``Origin``, and foreign names that DNS points at this machine by the ``Host``. Pure ASGI: answers
stream through, and a client that goes away is still noticed by the route.

Not promised: TLS (put a proxy in front) or a limit of requests per client.

Limits on the size of a request's body and on the time it takes to arrive.

Silent connections must not exhaust the server's limit.

uvicorn closes a connection some time after its last answer, but waits forever for one that never completes a
request's head. Bodies that never end are :mod:`harness.serving.http.guards`' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from harness.serving.config import ServeConfig
from harness.serving.failures import ServingError
from harness.serving.http.refusals import refusal
from harness.serving.http.requests import keys_of
from harness.serving.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


CLIENT_GONE = 499
"""Status counted for a request whose client disconnected before its answer was complete, as in nginx."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the page has its own
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

PORTS = {"http": 80, "https": 443}

_log = logging.getLogger(__name__)


class UnauthorizedError(ServingError):
    """The request has no key, or a wrong one."""

    status = 401
    kind = "unauthorized"


class ForbiddenError(ServingError):
    """The request comes from a foreign web page, or names a foreign host."""

    status = 403
    kind = "forbidden"


def guarded(app: ASGIApp, config: ServeConfig, key: str | None) -> ASGIApp:
    """Return an application that refuses what may not pass, in the dialect of its route.

    Args:
        app: the whole application.
        config: what was asked for: host, web origins, cap on the body.
        key: what requests must bear, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``; ``None`` asks for none.
            ``GET /health`` and the page at ``GET /`` with its files are open.
    """
    inner: ASGIApp = CappedBody(app, config.max_body_bytes, config.deadline_s)
    if key is not None:
        inner = _Key(inner, key)
    if config.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=[origin.lower() for origin in config.cors_origins],
            allow_private_network=True,  # a listed page that is not of this network may ask for this one
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("WWW-Authenticate", "Retry-After"),
        )
    return _Place(inner, config, key is not None)


def counted(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Return an application whose requests are counted, refused ones included; wraps everything else."""

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        start, status, complete, gone = time.perf_counter(), 500, False, False

        async def sent(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                complete = True
            await send(message)

        async def received() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not complete)
            return message

        try:
            await app(scope, received, sent)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", None) or "other"
            status = CLIENT_GONE if gone else status
            metrics.answered(scope["method"], route, status, seconds)
            _log.debug("%s %s %d in %.3f s", scope["method"][:10], route, status, seconds)

    return count


class _Place:
    """Refuses foreign hosts and foreign web pages; puts the security headers on every answer."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keyed: bool) -> None:
        self._app = app
        self._host = config.host.strip("[]").lower()
        # A page that DNS rebinding lets in has no key: with one, names that a proxy forwards are accepted.
        self._check_host = not keyed
        own = socket.gethostname().lower()
        self._names = {own, f"{own}.local", own.partition(".")[0]}
        self._origins = {origin.lower() for origin in config.cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # there is no WebSocket route, and no guard checks its messages
            return await send({"type": "websocket.close", "code": 1008})

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error = self._foreign(scope)
        if error is not None:
            return await refuse(scope, hardened, error)
        return await self._app(scope, receive, hardened)

    def _foreign(self, scope: Scope) -> ServingError | None:
        hosts, origins = header_values(scope, b"host"), header_values(scope, b"origin")
        if self._check_host and not all(self._is_here(host) for host in hosts):
            return ForbiddenError(
                f"host {hosts[0][:80]!r} is not this server. Use its IP address, or start it with --api-key-file, "
                "which lets other names in."
            )
        for origin in origins:
            listed = "*" in self._origins or origin.lower() in self._origins
            if not listed and not (len(hosts) == 1 and _same_place(origin, hosts[0])):
                return ForbiddenError(
                    f"web pages of {origin[:80]!r} may not use this server. Start it with --cors-origin to allow them."
                )
        return None

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        name = name.removesuffix(".")
        if name in ("localhost", self._host, *self._names) or name.endswith(".localhost"):
            return True
        try:
            return bool(ip_address(name))  # DNS rebinding needs a name; an address is safe
        except ValueError:
            return False


class _Key:
    """Asks for the key, in constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope) and not self._bears(scope):
            error = UnauthorizedError("this server requires its key. Send it as `Authorization: Bearer KEY`.")
            return await refuse(scope, send, error, {"WWW-Authenticate": "Bearer"})
        return await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (path in ("/", "/health") or path.startswith("/static/"))

    def _bears(self, scope: Scope) -> bool:
        return any(hmac.compare_digest(one, self._key) for one in keys_of(scope))


def _same_place(origin: str, host: str) -> bool:
    """Whether a page of this origin was served under this host; the scheme may have ended at a proxy."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        if page.scheme not in PORTS or not page.hostname:
            return False
        port = page.port or PORTS[page.scheme]
        return page.hostname == here.hostname and port == (here.port or PORTS[page.scheme])
    except ValueError:
        return False


HEAD_S = 30.0
"""Seconds in which a connection must get a request's head across, at least; twice that at most."""


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, whichever is installed, with a time limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Accept a connection and start checking it."""
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.loop.call_later(HEAD_S, self._look, self.cycle, self._unread())

    def _look(self, before: Any, unread: int) -> None:
        """Close when nothing arrived since the last check and no request is being answered, or nothing was read."""
        if self.transport.is_closing() and not self._unread():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if unread and unread == self._unread():
            self.transport.abort()  # closing would wait for a client that does not read
        elif idle and self.cycle is before and not self.transport.is_closing():
            self.transport.close()
            self._look_again()
        else:
            self._look_again()

    def _unread(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        unread: int = self.transport.get_write_buffer_size()
        return unread
