"""Whatever a library raises on a foreign file is one line; whether the hub may be asked is decided once."""

from __future__ import annotations

import errno
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from io import BytesIO
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


def test_any_error_becomes_a_refusal_with_its_reason() -> None:
    for error, reason in (
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
    ):
        assert said(error) == f"m.json cannot be read: {reason}."
        assert said(error, remedy="Fetch it.", refusal=ArtefactError) == f"m.json cannot be read: {reason}. Fetch it."


def test_what_is_no_fault_of_the_file_passes() -> None:
    for error in (
        *(ArtefactError("ours"), KeyboardInterrupt(), SystemExit(2), MemoryError(), TypeError("told apart")),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        with pytest.raises(type(error)) as passed, library_border("m.json cannot be read", passing=(TypeError,)):
            raise error
        assert passed.value is error


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


def test_a_refused_connection_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_endpoint() == "http://127.0.0.1:9"
    assert not hub_in_reach()
    assert "refused" in str(hub_trouble("http://127.0.0.1:9"))


def test_a_hub_is_asked_once_and_what_kind_of_failure_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for answer, reach in (
        (None, True),
        (urllib.error.HTTPError("https://huggingface.co", 503, "busy", Message(), None), True),  # it answers
        (urllib.error.URLError(TimeoutError("timed out")), False),
        (urllib.error.URLError(OSError(101, "Network is unreachable")), False),
        (TimeoutError("the read operation timed out"), False),
        (urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate")), True),
    ):

        def open_(url: str, timeout: float, answer: Exception | None = answer) -> Any:
            assert url.startswith("https://huggingface.co/")
            assert timeout == PATIENCE_S
            asked.append(url)
            if answer is not None:
                raise answer
            return BytesIO()

        hub_trouble.cache_clear()
        asked.clear()
        monkeypatch.setattr(urllib.request, "urlopen", open_)
        assert [hub_in_reach() for _ in range(3)] == [reach] * 3
        assert (hub_trouble("https://huggingface.co") is None) == reach
        assert len(asked) == 1
    asked.clear()
    for value in ("1", "true", "YES", "on"):  # offline mode asks nobody
        hub_trouble.cache_clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert hub_offline()
        assert not hub_in_reach()
    assert not asked
