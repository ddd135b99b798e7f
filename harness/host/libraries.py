"""Where libraries of others read files of others: whatever they raise becomes one line that names the file.

transformers, tokenizers and safetensors document few of their errors and raise more: a wrong type in a JSON is an
``AttributeError`` here, a ``KeyError`` there, a plain ``Exception`` or a Rust panic elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HarnessError, ModelError, is_out_of_memory, reason

__all__ = ["library_border"]


@contextmanager
def library_border(
    what: str,
    remedy: str = "",
    refusal: type[HarnessError] = ModelError,
    passing: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn what a library raises on a foreign file into one refusal.

    Refusals of the harness, an interrupt and memory that runs out pass as they are.

    Args:
        what: what cannot be done, with the file: the library's reason follows behind a colon.
        remedy: a sentence behind the reason.
        refusal: what is raised instead.
        passing: errors that the caller tells apart itself.

    Raises:
        HarnessError: of the class asked for, with the library's error as its cause.
    """
    try:
        yield
    except BaseException as error:  # broad: the file is foreign, and what libraries raise on it is not declared
        if isinstance(error, (HarnessError, *passing)):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # which Rust raises
            raise
        if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
            raise
        raise refusal(f"{what}: {reason(error)}. {remedy}".rstrip()) from error
