"""A server on loopback, in a thread of its own, over a tiny random model."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from harness.serving.config import ServeConfig
from harness.serving.http.app import make_app
from harness.serving.service import Service


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``; ``service`` is what is behind it."""

    url: str
    service: Service


@contextmanager
def ready(config: ServeConfig) -> Iterator[Service]:
    """A service whose model is there."""
    service = Service(config)
    service.start()
    limit = time.monotonic() + 120
    while service.state == "loading" and time.monotonic() < limit:
        time.sleep(0.02)
    assert service.state == "ready", service.failure
    try:
        yield service
    finally:
        service.drain()
        service.close()


@contextmanager
def serving(config: ServeConfig) -> Iterator[Running]:
    """A server until the block ends."""
    import uvicorn

    with ready(config) as service:
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        assert httpx.get(f"{url}/openapi.json").status_code == 200
        try:
            yield Running(url, service)
        finally:
            service.drain()
            server.should_exit = True
            thread.join(30)
            listener.close()


@pytest.fixture(scope="session")
def serve_config(tiny_llama: Path) -> Callable[..., ServeConfig]:
    """``serve_config(**settings)``: the tiny model, several strategies, one thread, and tokens as exits say them."""

    def make(**settings: object) -> ServeConfig:
        values = {
            "model": str(tiny_llama),
            "strategies": ("confidence:threshold=0.6", "fixed:layer=4", "random", "patience"),
            "threads": 1,
            "decode": "lossy",
            "energy": "estimate",
            "max_new_tokens": 48,
            "batch_size": 4,
        }
        return ServeConfig.build({**values, **settings})

    return make


@pytest.fixture(scope="session")
def server(serve_config: Callable[..., ServeConfig]) -> Iterator[Running]:
    """The default server, shared: no test changes it."""
    with serving(serve_config()) as running:
        yield running


@pytest.fixture
def start(serve_config: Callable[..., ServeConfig]) -> Iterator[Callable[..., Running]]:
    """``start(**settings)``: a server of one's own, until the test is done."""
    with ExitStack() as stack:

        def begin(**settings: object) -> Running:
            return stack.enter_context(serving(serve_config(**settings)))

        yield begin


@pytest.fixture
def own(serve_config: Callable[..., ServeConfig]) -> Iterator[Callable[..., Service]]:
    """``own(**settings)``: a service for one test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(ready(serve_config(**settings)))
