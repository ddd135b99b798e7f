"""Who may come in: where the server listens, the key that requests bear, their host, origin and size.

A server on loopback is still within reach of every web page that a browser on this machine opens, so pages are
refused by their ``Origin``, and foreign names that DNS points at this machine by the ``Host``. Connections on which
nothing moves are ended by :mod:`harness.serving.server`. Not promised: TLS, or a limit of requests per client. A proxy
in front does these.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import logging
import os
import re
import socket
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from harness.errors import ConfigError
from harness.host.files import open_regular
from harness.serving.completions import RefusedError
from harness.serving.config import ServeConfig
from harness.serving.dialects import refusal
from harness.serving.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SHORTEST_KEY = 16  # characters, so that it cannot be guessed
BACKLOG = 512  # connections, including those that arrive while the server is being set up
SWALLOWED_BODIES = 16  # times the cap is read of a larger body: closing with an unread one may lose the answer
CLIENT_GONE = 499  # counted where a client disconnected before its answer was complete, as in nginx

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the page has its own
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

PORTS = {"http": 80, "https": 443}

_log = logging.getLogger(__name__)


def allowed_key(config: ServeConfig) -> str | None:
    """Return the key that requests must bear, or ``None``; refuse to be open to every web page without one."""
    for origin in config.cors_origins:
        if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/@?#\s\[\]]+|https?://\[[0-9a-f:]+\](:\d+)?", origin, re.I):
            raise ConfigError(f"--cors-origin {origin!r} is no web origin. Write scheme://host[:port], without a path.")
    key = read_key(config.api_key_file) if config.api_key_file is not None else None
    if key is None and "*" in config.cors_origins:
        # Even with --insecure: that opens the server to reachable machines, this to every web page a user visits.
        raise ConfigError("--cors-origin '*' lets every web page in. Give --api-key-file too, or list the origins.")
    return key


def read_key(file: Path) -> str:
    """Return the key in the first line of a file; warns when others on the machine can read it."""
    try:
        with open_regular(file) as stream:
            mode, line = os.fstat(stream.fileno()).st_mode, stream.readline(4096).strip()
    except OSError as error:
        raise ConfigError(f"cannot read --api-key-file {file}: {error.strerror}. Give a file with a key.") from None
    if len(line) < SHORTEST_KEY or any(byte <= 32 or byte >= 127 for byte in line):
        raise ConfigError(
            f"the first line of --api-key-file {file} is no key. Write {SHORTEST_KEY} or more printable ASCII "
            "characters without spaces there."
        )
    if os.name == "posix" and mode & 0o044:
        _log.warning("other users can read the key in %s. Run `chmod 600` on it.", file)
    return line.decode("ascii")


def listen(config: ServeConfig, key: str | None) -> list[socket.socket]:
    """Return sockets that listen at every address of the host, all at one port: a client may try any of them first.

    Refuses to be open to other machines without a key.
    """
    listeners: list[socket.socket] = []
    port = config.port
    try:
        found = socket.getaddrinfo(config.host.strip("[]"), port, type=socket.SOCK_STREAM)
        places = sorted({(family, str(address[0])) for family, _, _, _, address in found})  # IPv4 before IPv6
        if key is None and not config.insecure and not all(ip_address(address).is_loopback for _, address in places):
            raise ConfigError(
                f"--host {config.host} is open to other machines. Give --api-key-file, or --insecure to do without a "
                "key."
            )
        for family, address in places:
            # `::` is everything, as `0.0.0.0` is: also what comes over IPv4.
            both = address == "::" and socket.has_dualstack_ipv6()
            try:
                listener = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
            except OSError as error:
                # A machine without IPv6 still names ::1 `localhost`.
                if not listeners or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                continue
            # What it accepts inherits this: asyncio sets it only where a socket names its protocol, and a token that
            # waits for the acknowledgement of the one before comes 40 ms late.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listeners.append(listener)
            port = listener.getsockname()[1]
    except (OSError, UnicodeError) as error:
        for listener in listeners:
            listener.close()
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"cannot listen at {config.host}, port {port}: {said}. Give another --host or --port."
        ) from None
    return listeners


def guarded(app: ASGIApp, config: ServeConfig, key: str | None, metrics: Metrics) -> ASGIApp:
    """Return an application that refuses what may not pass, in the dialect of its route, and counts every request.

    Pure ASGI: answers stream through, and a client that goes away is still noticed by the route. With a key, ``GET
    /health`` and the page at ``GET /`` with its files are open.
    """
    inner = app if key is None else _keyed(app, key.encode())
    if config.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=[origin.lower() for origin in config.cors_origins],
            allow_private_network=True,  # a listed page that is not of this network may ask for this one
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("WWW-Authenticate", "Retry-After"),
        )
    own = socket.gethostname().lower()
    names = {"localhost", config.host.strip("[]").lower(), own, f"{own}.local", own.partition(".")[0]}
    origins = {origin.lower() for origin in config.cors_origins}

    def foreign(headers: Headers) -> str:
        """Say why a request may not pass. With a key every name may: a page that DNS rebinding lets in has none."""
        hosts = headers.getlist("host")
        if key is None and not all(_is_here(host, names) for host in hosts):
            return (
                f"host {hosts[0][:80]!r} is not this server. Use its IP address, or start it with --api-key-file, "
                "which lets other names in."
            )
        for origin in headers.getlist("origin"):
            listed = "*" in origins or origin.lower() in origins
            if not listed and not (len(hosts) == 1 and _same_place(origin, hosts[0])):
                return (
                    f"web pages of {origin[:80]!r} may not use this server. Start it with --cors-origin to allow them."
                )
        return ""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if scope["type"] != "http":  # there is no WebSocket route, and no guard checks its messages
            return await send({"type": "websocket.close", "code": 1008})
        start, status, complete, gone = time.perf_counter(), 500, False, False

        async def sent(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status, headers = message["status"], MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif not message.get("more_body"):
                complete = True
            await send(message)

        async def received() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not complete)
            return message

        try:
            if said := foreign(Headers(scope=scope)):
                await _refused(scope, said, 403, "forbidden")(scope, receive, sent)
            else:
                await inner(scope, received, sent)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", None) or "other"
            status = CLIENT_GONE if gone else status
            metrics.answered(scope["method"], route, status, seconds)
            _log.debug("%s %s %d in %.3f s", scope["method"][:10], route, status, seconds)

    return guard


def _keyed(app: ASGIApp, key: bytes) -> ASGIApp:
    """Ask for the key, in constant time."""

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        opened = scope["method"] in ("GET", "HEAD") and (path in ("/", "/health") or path.startswith("/static/"))
        if opened or any(hmac.compare_digest(one, key) for one in keys_of(scope)):
            return await app(scope, receive, send)
        said = "this server requires its key. Send it as `Authorization: Bearer KEY`."
        refused = _refused(scope, said, 401, "unauthorized", {"WWW-Authenticate": "Bearer"})
        return await refused(scope, receive, send)

    return check


def _refused(scope: Scope, said: str, status: int, kind: str, headers: dict[str, str] | None = None) -> ASGIApp:
    return JSONResponse(refusal(scope["path"], RefusedError(said, status, kind)), status, headers)


def keys_of(scope: Scope) -> list[bytes]:
    """Return the keys that a request bears, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``."""
    keys = [value.strip() for name, value in scope["headers"] if name == b"x-api-key"]
    for name, value in scope["headers"]:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            keys.append(token.strip())
    return keys


def owner_of(scope: Scope) -> str:
    """Return what requests with the same keys have in common, and no others; those without a key are one owner's.

    Whether a key is right is up to :func:`guarded`: a proxy in front may know keys that this server does not ask for.
    """
    return hashlib.sha256(b"\n".join(sorted(set(keys_of(scope))))).hexdigest()


def _is_here(host: str, names: set[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        return name in names or name.endswith(".localhost") or bool(ip_address(name))  # rebinding needs a name
    except ValueError:
        return False


def _same_place(origin: str, host: str) -> bool:
    """Whether a page of this origin was served under this host; the scheme may have ended at a proxy."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        port = PORTS[page.scheme]
        return bool(page.hostname) and (page.hostname, page.port or port) == (here.hostname, here.port or port)
    except (KeyError, ValueError):
        return False


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """Return the body of a request; refuse one that has, or says it has, more bytes than one may have, or is late."""
    body, cap = bytearray(), config.max_body_bytes
    said = request.headers.get("content-length", "")
    size = int(said) if said.isdecimal() else 0
    try:
        async with asyncio.timeout(config.deadline_s):
            pieces = request.stream()
            while size <= cap and (piece := await anext(pieces, None)) is not None:
                body += piece
                size = max(size, len(body))
    except TimeoutError:
        late = f"the request was not complete within {config.deadline_s:g} s. Send it faster."
        raise RefusedError(late, 408, "timeout") from None
    if size > cap:
        said = f"the request has more than {cap} bytes. Send less, or start the server with --max-body-bytes."
        raise RefusedError(said, 413, "too_large")
    return bytes(body)


class TooLarge(JSONResponse):
    """The answer to a body that is too large: sent at once, and closed when some of the body was read and forgotten."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and take what the client sends before it looks at the answer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        config, size, more = scope["app"].state.service.config, 0, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(config.deadline_s):
                while more and size <= SWALLOWED_BODIES * config.max_body_bytes:
                    message = await receive()
                    size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})
