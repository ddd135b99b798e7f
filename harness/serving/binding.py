"""Where a server may listen, and the key that its requests must bear: everything that is settled before it serves."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import ConfigError
from harness.serving.config import ServeConfig

SHORTEST_KEY = 16
"""Characters a key must have, so that it cannot be guessed."""

PATIENCE_S = 5
"""How long a key may take to come out of a pipe."""

BACKLOG = 512
"""Backlog of connections, including those that arrive while the server is being set up."""

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # nosec B104  # compared with, never bound to unasked

_log = logging.getLogger(__name__)


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
    return all(_is_loopback(address) for _, address in _addresses(host, 0))


def read_key(file: Path) -> str:
    """Return the key in the first line of a file; warns when others on the machine can read it.

    Raises:
        ConfigError: the file cannot be read, or holds no key that is long enough and can be sent in a header.
    """
    remedy = f"Put a key of {SHORTEST_KEY} characters or more into its first line."
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISFIFO(mode) and not select.select([stream], [], [], PATIENCE_S)[0]:  # as of `<(command)`
                raise ConfigError(f"--api-key-file {file} is a pipe that nobody wrote to for {PATIENCE_S} s. {remedy}")
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
    port, refused = config.port, None
    for family, address in _addresses(config.host, port):
        try:
            # `::` is everything, as `0.0.0.0` is: also what comes over IPv4.
            both = family == socket.AF_INET6 and address == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            # A machine without IPv6 still names ::1 `localhost`.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                refused = error
                continue
            for listener in listeners:
                listener.close()
            raise _refusal(config.host, port, error) from None
        listeners.append(listener)
        port = listener.getsockname()[1]
    if not listeners:
        assert refused is not None
        raise _refusal(config.host, port, refused)
    return listeners


def url_of(host: str, port: int) -> str:
    """Return the address that a client on this machine uses."""
    host = host.strip("[]")
    name = WILDCARDS.get(host) or (f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def everywhere(host: str) -> bool:
    """Whether a host stands for every address of this machine."""
    return host.strip("[]") in WILDCARDS


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host} cannot be resolved. Give a name or an address of this machine.") from None
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback


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


def _refusal(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} of {host} is in use. Stop what listens there, or give another --port.")
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} of {host} is not for this user. Give a --port of 1024 or more.")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"--host {host} is no address of this machine. Give one that is, or 127.0.0.1.")
    return ConfigError(
        f"cannot listen at {host}, port {port}: {error.strerror or error}. Give another --host or --port."
    )
