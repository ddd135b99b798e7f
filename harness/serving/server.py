"""From a configuration to a process that answers, and to its orderly end."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from harness.appearance.visible_text import one_line
from harness.errors import ModelError
from harness.serving.app import make_app
from harness.serving.config import ServeConfig
from harness.serving.guards import BACKLOG, allowed_key, guarded, listen
from harness.serving.service import Service

if TYPE_CHECKING:
    import socket

IDLE_CONNECTIONS = 512
"""Connections on top of those of running and waiting requests. One more is answered with 503."""

KEEP_ALIVE_S = 30
"""Seconds that a connection stays open after an answer."""

HEAD_S = 30.0
"""Seconds in which a connection must get a request's head across, at least; twice that at most."""

LAST_WORDS_S = 5
"""Seconds that clients get to read the error of what was unfinished at the end of draining."""

TICK_S = 0.1


def _to_stderr(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def serve(config: ServeConfig, say: Callable[[str], None] = _to_stderr) -> bool:
    """Serve until SIGTERM or SIGINT.

    The first signal lets running answers finish, for ``drain_s`` seconds at most; what is left then ends with an
    error. The second stops at once: answers break off, and the client's connection with them.

    Args:
        config: what was asked for.
        say: called with one line when it listens and one when it is ready.

    Returns:
        Whether the engine's thread has ended. Where it has not, since it was told to stop while it loaded, the process
        must leave by ``os._exit``: an interpreter that is torn down while torch computes aborts.

    Raises:
        HarnessError: it may not or cannot listen there, or has no model to serve.
        KeyboardInterrupt: stopped twice; the thread may still be running.
    """
    key = allowed_key(config)
    listeners = listen(config)
    try:
        service = Service(config)
        server = _Server(service, config, key)
        service.metrics.bind(service)
        url = config.url(listeners[0].getsockname()[1])
        service.start()
        try:
            asyncio.run(_run(server, service, listeners, url, say))
        finally:
            if service.state != "draining":  # draining again would restart its time limit
                service.drain()
        if server.force_exit:
            raise KeyboardInterrupt
        ended = service.close()
        if server.failure is not None:
            raise ModelError(server.failure)
        return ended
    finally:
        for listener in listeners:
            listener.close()


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, whichever is installed, that ends a connection on which nothing moves.

    uvicorn counts the time between two requests alone: who sends no whole head, or takes nothing of an answer, would
    keep a connection for ever, and :data:`IDLE_CONNECTIONS` of them the server.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Accept a connection and start checking it."""
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.loop.call_later(HEAD_S, self._look, self.cycle, self.transport.get_write_buffer_size())

    def _look(self, before: Any, unread: int) -> None:
        left: int = self.transport.get_write_buffer_size()
        if self.transport.is_closing() and not left:
            return
        if unread and unread == left:
            self.transport.abort()  # closing would wait for a client that does not read
            return
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        self._look_again()


class _Server(uvicorn.Server):
    """uvicorn, but a signal first lets the engine finish, and stopping is not a failure."""

    def __init__(self, service: Service, config: ServeConfig, key: str | None) -> None:
        app = guarded(make_app(service), config, key, service.metrics)
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                log_config=None,
                access_log=False,  # its lines hold query strings; ours hold the route, at debug level
                server_header=False,
                proxy_headers=False,
                ws="none",
                limit_concurrency=config.batch_size + config.max_queue + IDLE_CONNECTIONS,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(config.drain_s) + LAST_WORDS_S,
            )
        )
        self._service = service
        self.failure: str | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at once at the second. uvicorn would raise the signal again at its end."""
        if self.should_exit:
            self.force_exit = True
            # It would log every answer that breaks off, with a traceback.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            # From Python 3.12 on a server is closed when its connections are, and uvicorn waits for that.
            loop = asyncio.get_running_loop()
            for connection in list(self.server_state.connections):
                loop.call_soon_threadsafe(connection.transport.abort)
        else:
            self._service.drain()
            self.should_exit = True


async def _run(
    server: _Server, service: Service, listeners: list[socket.socket], url: str, say: Callable[[str], None]
) -> None:
    watch = asyncio.ensure_future(_watch(server, service, url, say))
    try:
        await server.serve(sockets=listeners)
    finally:
        watch.cancel()


async def _watch(server: _Server, service: Service, url: str, say: Callable[[str], None]) -> None:
    """Report when it listens and when it is ready, and stop it when loading fails."""
    start = time.perf_counter()
    while not server.started:
        await asyncio.sleep(TICK_S / 10)
    others = " and at every address of this machine" if service.config.everywhere else ""
    say(f"listening at {url}{others}, loading {service.model_name}")
    while service.state == "loading":
        await asyncio.sleep(TICK_S)
    if service.state == "ready":
        setting = service.settings.default
        default = ":".join([setting.name, *(f"{name}={_short(value)}" for name, value in setting.options.items())])
        say(
            f"ready after {time.perf_counter() - start:.1f} s: {service.model_name} ({service.info.weights}, "
            f"{service.dtype} on {service.device}), default strategy {default}, {setting.decode}"
        )
    while service.state != "failed":
        await asyncio.sleep(TICK_S)
    server.failure = service.failure or "the model could not be loaded."
    server.should_exit = True


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
