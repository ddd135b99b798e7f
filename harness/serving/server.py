"""From a configuration to a process that answers, and to its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
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

IDLE_CONNECTIONS = 512  # on top of those of running and waiting requests; one more is answered with 503
KEEP_ALIVE_S = 30  # that a connection stays open after an answer
HEAD_S = 30.0  # in which a connection must get a request's head across, at least; twice that at most
LAST_WORDS_S = 5  # that clients get to read the error of what was unfinished at the end of draining
TICK_S = 0.1


def serve(config: ServeConfig) -> bool:
    """Serve until SIGTERM or SIGINT; writes one line to stderr when it listens and one when it is ready.

    The first signal lets running answers finish, for ``drain_s`` seconds at most; what is left then ends with an
    error. The second stops at once: answers break off, and the client's connection with them.

    Returns:
        Whether the engine's thread has ended. Where it has not, since it was told to stop while it loaded, the process
        must leave by ``os._exit``: an interpreter that is torn down while torch computes aborts.

    Raises:
        HarnessError: it may not or cannot listen there, or has no model to serve.
        KeyboardInterrupt: stopped twice; the thread may still be running.
    """
    key = allowed_key(config)
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(listener) for listener in listen(config, key)]
        service = Service(config)
        server = _Server(service, config, key)
        service.start()
        try:
            asyncio.run(_run(server, service, listeners))
        finally:
            if service.state != "draining":  # draining again would restart its time limit
                service.drain()
        if server.force_exit:
            raise KeyboardInterrupt
        ended = service.close()
        if server.failure is not None:
            raise ModelError(server.failure)
        return ended


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol that ends a connection on which nothing moves: who sends no whole head, or takes nothing of an
    answer, would keep it for ever, and :data:`IDLE_CONNECTIONS` of them the server.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Accept a connection and start to look at it."""
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.loop.call_later(HEAD_S, self._look, self.cycle, self.transport.get_write_buffer_size())

    def _look(self, before: Any, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if unread and unread == left:
            self.transport.abort()  # closing would wait for a client that does not read
        elif left or not self.transport.is_closing():
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


async def _run(server: _Server, service: Service, listeners: list[socket.socket]) -> None:
    watch = asyncio.ensure_future(_watch(server, service, service.config.url(listeners[0].getsockname()[1])))
    try:
        await server.serve(sockets=listeners)
    finally:
        watch.cancel()


async def _watch(server: _Server, service: Service, url: str) -> None:
    """Report when it listens and when it is ready, and stop it when loading fails."""
    start = time.perf_counter()
    while not server.started:
        await asyncio.sleep(TICK_S / 10)
    others = " and at every address of this machine" if service.config.everywhere else ""
    _say(f"listening at {url}{others}, loading {service.model_name}")
    while service.state == "loading":
        await asyncio.sleep(TICK_S)
    if service.state == "ready":
        setting = service.settings.default
        options = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                   for name, value in setting.options.items())  # fmt: skip
        _say(
            f"ready after {time.perf_counter() - start:.1f} s: {service.model_name} ({service.info.weights}, "
            f"{service.info.weights_format} on {service.device}), default strategy "
            f"{':'.join([setting.name, *options])}, {setting.decode}"
        )
    while service.state != "failed":
        await asyncio.sleep(TICK_S)
    server.failure = service.failure or "the model could not be loaded."
    server.should_exit = True


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
