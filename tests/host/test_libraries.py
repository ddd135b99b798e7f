"""Whatever a library raises on a foreign file is one line; what is no fault of the file passes as it is."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from harness.errors import ArtefactError, ModelError
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


def test_a_long_reason_is_cut() -> None:
    assert len(said(ValueError("x" * 10_000))) < 400


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
