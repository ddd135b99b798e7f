"""Checks that a request must pass before it reaches a route: host, origin, key, size.

A server on loopback is still within reach of every web page that a browser on this machine opens, so pages are
refused by their ``Origin``, and foreign names that DNS points at this machine by the ``Host``. Pure ASGI: answers
stream through, and a client that goes away is still noticed by the route.

Not promised: TLS (put a proxy in front) or a limit of requests per client.
"""

from __future__ import annotations

import hmac
import logging
import socket
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware

from harness.serving.config import ServeConfig
from harness.serving.failures import ServingError
from harness.serving.http.keys import keys_of
from harness.serving.http.limits import CappedBody, header_values, refuse
from harness.serving.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ForbiddenError", "UnauthorizedError", "counted", "guarded"]

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
