"""Who may come in: where the server listens, the key that requests bear, their host, origin and size.

A server on loopback is still within reach of every web page that a browser on this machine opens, so pages are
refused by their ``Origin``, and foreign names that DNS points at this machine by the ``Host``. Pages that are let in
are starlette's business (CORS). Pure ASGI: answers stream through, and a client that goes away is still noticed by the
route.

Silent and slow connections are ended by :mod:`harness.serving.server`. Not promised: TLS, or a limit of requests per
client. A proxy in front does these.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import json
import logging
import os
import socket
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from harness.errors import ConfigError
from harness.serving.completions import RefusedError, ServingError
from harness.serving.config import ServeConfig
from harness.serving.dialects import refusal
from harness.serving.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SHORTEST_KEY = 16
"""Characters a key must have, so that it cannot be guessed."""

BACKLOG = 512
"""Backlog of connections, including those that arrive while the server is being set up."""

SWALLOW_S, SWALLOWED_BODIES = 3.0, 16
"""How long a refused body is still read, in seconds, and how far, in multiples of the cap."""

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


# What is settled before anything listens.


def allowed_key(config: ServeConfig) -> str | None:
    """Return the key that requests must bear, or ``None``, once it is clear that the server may listen as it is told.

    Raises:
        ConfigError: it would be open to other machines, or to every web page, without a key; an unusable key file, an
            invalid origin, or a host that cannot be resolved.
    """
    for origin in config.cors_origins:
        _check_origin(origin)
    key = read_key(config.api_key_file) if config.api_key_file is not None else None
    if key is None and "*" in config.cors_origins:
        # Even with --insecure: that opens the server to reachable machines, this to every web page a user visits.
        raise ConfigError("--cors-origin '*' lets every web page in. Give --api-key-file too, or list the origins.")
    if key is None and not config.insecure and not is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} is open to other machines. Give --api-key-file, or --insecure to do without a key."
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether every address of a host is on this machine.

    Raises:
        ConfigError: it cannot be resolved.
    """
    addresses = [ip_address(address) for _, address in _addresses(host, 0)]
    return all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in addresses)


def read_key(file: Path) -> str:
    """Return the key in the first line of a file; warns when others on the machine can read it.

    Raises:
        ConfigError: the file cannot be read, or holds no key that is long enough and can be sent in a header.
    """
    remedy = f"Put a key of {SHORTEST_KEY} characters or more into its first line."
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            line = stream.readline(4096).strip()
    except OSError as error:
        raise ConfigError(f"cannot read --api-key-file {file}: {error.strerror}. {remedy}") from None
    if not line:
        raise ConfigError(f"--api-key-file {file} is empty. {remedy}")
    if not line.isascii() or any(byte <= 32 or byte == 127 for byte in line):
        raise ConfigError(f"the key in {file} cannot be sent in a header. Use printable ASCII without spaces.")
    if len(line) < SHORTEST_KEY:
        raise ConfigError(f"the key in {file} has {len(line)} characters. {remedy}")
    if os.name == "posix" and mode & 0o044:
        _log.warning("other users can read the key in %s. Run `chmod 600` on it.", file)
    return line.decode("ascii")


def listen(config: ServeConfig) -> list[socket.socket]:
    """Return sockets that listen at every address of the host, all at one port.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is no address of this machine.
    """
    listeners: list[socket.socket] = []
    port, missing = config.port, None
    for family, address in _addresses(config.host, port):
        try:
            # `::` is everything, as `0.0.0.0` is: also what comes over IPv4.
            both = family == socket.AF_INET6 and address == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            # A machine without IPv6 still names ::1 `localhost`.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                missing = error
                continue
            for listener in listeners:
                listener.close()
            raise _cannot_listen(config.host, port, error) from None
        listeners.append(listener)
        port = listener.getsockname()[1]
    if not listeners and missing is not None:
        raise _cannot_listen(config.host, port, missing)
    return listeners


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host} cannot be resolved. Give a name or an address of this machine.") from None
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _check_origin(origin: str) -> None:
    if origin == "*":
        return
    try:
        parts = urlsplit(origin)
        rest = origin.removeprefix(f"{parts.scheme}://{parts.netloc}")
        good = bool(parts.scheme and parts.hostname and "@" not in parts.netloc and not rest)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"--cors-origin {origin!r} is no web origin. Write scheme://host[:port], without a path.")


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    known = {
        errno.EADDRINUSE: f"port {port} of {host} is in use. Stop what listens there, or give another --port.",
        errno.EACCES: f"port {port} of {host} is not for this user. Give a --port of 1024 or more.",
        errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine. Give one that is, or 127.0.0.1.",
    }
    other = f"cannot listen at {host}, port {port}: {error.strerror or error}. Give another --host or --port."
    return ConfigError(known.get(error.errno or 0, other))


# What every request must pass.


def guarded(app: ASGIApp, config: ServeConfig, key: str | None, metrics: Metrics) -> ASGIApp:
    """Return an application that refuses what may not pass, in the dialect of its route, and counts every request.

    Args:
        app: the whole application.
        config: what was asked for: host and web origins.
        key: what requests must bear, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``; ``None`` asks for none.
            ``GET /health`` and the page at ``GET /`` with its files are open.
        metrics: count.
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
    return _counted(_placed(inner, config, keyed=key is not None), metrics)


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


async def _refuse(scope: Scope, send: Send, error: ServingError, **headers: str) -> None:
    body = json.dumps(refusal(scope["path"], error)).encode()
    given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _counted(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Count requests, refused ones included, by the route that took them."""

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


def _placed(app: ASGIApp, config: ServeConfig, *, keyed: bool) -> ASGIApp:
    """Refuse foreign hosts and foreign web pages; put the security headers on every answer."""
    own = socket.gethostname().lower()
    names = {"localhost", config.host.strip("[]").lower(), own, f"{own}.local", own.partition(".")[0]}
    origins = {origin.lower() for origin in config.cors_origins}

    def foreign(headers: Headers) -> str:
        hosts = headers.getlist("host")
        # A page that DNS rebinding lets in has no key: with one, names that a proxy forwards are accepted.
        if not keyed and not all(_is_here(host, names) for host in hosts):
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

    async def place(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if scope["type"] != "http":  # there is no WebSocket route, and no guard checks its messages
            return await send({"type": "websocket.close", "code": 1008})

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if said := foreign(Headers(scope=scope)):
            return await _refuse(scope, hardened, RefusedError(said, 403, "forbidden"))
        return await app(scope, receive, hardened)

    return place


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
        if page.scheme not in PORTS or not page.hostname:
            return False
        port = page.port or PORTS[page.scheme]
        return page.hostname == here.hostname and port == (here.port or PORTS[page.scheme])
    except ValueError:
        return False


def _keyed(app: ASGIApp, key: bytes) -> ASGIApp:
    """Ask for the key, in constant time."""

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        opened = scope.get("method") in ("GET", "HEAD") and (path in ("/", "/health") or path.startswith("/static/"))
        if scope["type"] != "http" or opened or any(hmac.compare_digest(one, key) for one in keys_of(scope)):
            return await app(scope, receive, send)
        said = "this server requires its key. Send it as `Authorization: Bearer KEY`."
        return await _refuse(scope, send, RefusedError(said, 401, "unauthorized"), www_authenticate="Bearer")

    return check


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedError: it has more bytes than one may have, announced or not, or takes longer to arrive.
        ClientDisconnect: the client has disconnected.
    """
    cap, patience_s = config.max_body_bytes, config.deadline_s
    too_large = f"the request has more than {cap} bytes. Send less, or start the server with --max-body-bytes."
    announced = request.headers.getlist("content-length")
    if any(not length.isdecimal() or int(length[:19]) > cap for length in announced):
        await _swallow(request, SWALLOWED_BODIES * cap)
        raise RefusedError(too_large, 413, "too_large")
    body = bytearray()
    try:
        async with asyncio.timeout(patience_s):
            async for piece in request.stream():
                body += piece
                if len(body) > cap:
                    raise RefusedError(too_large, 413, "too_large")
    except TimeoutError:
        late = f"the request was not complete within {patience_s:g} s. Send it faster."
        raise RefusedError(late, 408, "timeout") from None
    return bytes(body)


async def _swallow(request: Request, most: int) -> None:
    """Keep reading for a moment: closing a connection with an unread body resets it, and the answer is lost."""
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SWALLOW_S):
            async for piece in request.stream():
                read += len(piece)
                if read > most:
                    return
