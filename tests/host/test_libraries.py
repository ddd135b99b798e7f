"""Whatever a library raises on a foreign file is one line; whether the hub may be asked is decided once."""

from __future__ import annotations

import errno
import http.server
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.errors import ArtefactError, ModelError
from harness.host.hub import PATIENCE_S, hub_endpoint, hub_in_reach, hub_offline, hub_trouble
from harness.host.libraries import library_border


class PanicException(BaseException):
    """Stands for the panic of a library in Rust."""


def said(error: BaseException, **how: Any) -> str:
    with pytest.raises(how.get("refusal", ModelError)) as refused, library_border("m.json cannot be read", **how):
        raise error
    assert refused.value.__cause__ is error
    return str(refused.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad header"), "bad header"),
        (ValueError("bad header.\nSecond line"), "bad header"),
        (ValueError("Field 'a':\n    TypeError: no int"), "Field 'a': TypeError: no int"),
        (KeyError("weight_map"), "KeyError: 'weight_map'"),
        (AttributeError("'list' has no keys"), "AttributeError: 'list' has no keys"),
        (Exception("data did not match any variant"), "Exception: data did not match any variant"),
        (AssertionError(), "AssertionError"),
        (ValueError(), "ValueError"),
        (RecursionError("maximum depth"), "RecursionError: maximum depth"),
        (OSError(errno.EACCES, "Permission denied", "/m/x"), "/m/x: Permission denied"),
        (OSError("no file named model.safetensors"), "no file named model.safetensors"),
        (PanicException("index out of bounds"), "PanicException: index out of bounds"),
        (ValueError("out of memory, says a token"), "out of memory, says a token"),
        (StopIteration(), "StopIteration"),
    ],
    ids=repr,
)
def test_any_error_becomes_a_refusal_with_its_reason(error: BaseException, reason: str) -> None:
    assert said(error) == f"m.json cannot be read: {reason}."
    assert said(error, remedy="Fetch it.", refusal=ArtefactError) == f"m.json cannot be read: {reason}. Fetch it."


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        with library_border("m.json cannot be read", passing=(TypeError,)):
            raise error

    return act


@pytest.mark.parametrize(
    "error",
    [
        *(ArtefactError("ours"), KeyboardInterrupt(), SystemExit(2), MemoryError(), TypeError("told apart")),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=repr,
)
def test_what_is_no_fault_of_the_file_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed:
        raises(error)()
    assert passed.value is error


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


@pytest.fixture
def serve() -> Iterator[Callable[[int], tuple[str, list[str]]]]:
    """``serve(status)``: a hub on this machine that always answers so; its address and the paths it was asked for."""
    servers = []

    def start(status: int) -> tuple[str, list[str]]:
        paths: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths.append(self.path)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", paths

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 503])
def test_a_hub_that_answers_at_all_is_in_reach_and_asked_once(
    serve: Any, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    address, paths = serve(status)
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert hub_endpoint() == address
    assert [hub_in_reach() for _ in range(3)] == [True] * 3
    assert len(paths) == 1


def test_a_refused_connection_is_out_of_reach(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not hub_in_reach()
    assert "refused" in str(hub_trouble("http://127.0.0.1:9"))


def test_offline_mode_asks_nobody(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, paths = serve(200)
    monkeypatch.setenv("HF_ENDPOINT", address)
    for value in ("1", "true", "YES", "on"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert hub_offline()
        assert not hub_in_reach()
    assert paths == []


@pytest.mark.parametrize(
    ("error", "reach"),
    [
        (urllib.error.URLError(TimeoutError("timed out")), False),
        (urllib.error.URLError(OSError(101, "Network is unreachable")), False),
        (TimeoutError("the read operation timed out"), False),
        (urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate")), True),
    ],
)
def test_what_kind_of_failure_counts(monkeypatch: pytest.MonkeyPatch, error: Exception, reach: bool) -> None:
    def fail(url: str, timeout: float) -> Any:
        assert url.startswith("https://huggingface.co/")
        assert timeout == PATIENCE_S
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    assert hub_in_reach() == reach
    assert (hub_trouble("https://huggingface.co") is None) == reach
