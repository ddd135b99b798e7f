"""The door for files that others wrote: regular files only, read up to a limit, parsed within bounds; and how ours are
replaced whole.

What passes is a value of bounded size and depth, whose numbers are finite doubles or integers that every reader can
hold, and whose text can be encoded. :func:`refusing` words what is wrong in one line, with the file and the remedy.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import stat
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.errors import HarnessError

    M = TypeVar("M", bound=BaseModel)

LARGEST_DOCUMENT_BYTES = 64 << 20
LARGEST_LOG_BYTES = 1 << 30
"""Of what grows with an experiment: at 500 bytes a line, two million lines."""
LARGEST_TOML_BYTES = 1 << 20
"""A configuration is written by hand, and Python reads TOML slowly."""
DEEPEST = 100
"""Objects and lists inside one another."""
DEEPEST_PATH = 200
"""Folders inside one another in a path that is given: Python makes them by recursion, and cannot make a thousand."""
LONGEST_INTEGER = 18
"""Digits of an integer; all of that length fit into 64 bits."""

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NotRegularError(OSError):
    """A path that leads to something other than a file: its ``strerror`` says to what."""

    def __init__(self, path: Path, mode: int) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "device")
        super().__init__(errno.EINVAL, f"it is a {kind}, not a file", os.fspath(path))


class DocumentError(ValueError):
    """JSON or TOML that cannot be read or is beyond the bounds; the message is a phrase that says why, in one line."""


@contextmanager
def refusing(path: Path, refusal: type[HarnessError], remedy: str, what: str = "") -> Iterator[None]:
    """Turn what reading a foreign file raises into one line with the file, what is wrong and the remedy."""
    try:
        yield
    except OSError as error:
        raise refusal(f"cannot read {path}: {error.strerror or error}. {remedy}") from None
    except ValueError as error:
        why = str(error)
        if listed := getattr(error, "errors", None):  # pydantic's, which is not imported for a name
            why = ": ".join([".".join(map(str, listed()[0]["loc"])) or "the file", listed()[0]["msg"]])
        raise refusal(
            f"{path} is no {what}: {why}. {remedy}" if what else f"cannot read {path}: {why}. {remedy}"
        ) from None


def read_model(
    path: Path, model: type[M], refusal: type[HarnessError], remedy: str, what: str, *, finite: bool = True
) -> M:
    """Return what a JSON file of a declared format holds; arguments as for :func:`refusing` and :func:`parse_json`."""
    with refusing(path, refusal, remedy, what):
        return model.model_validate(read_json(path, finite=finite))


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; nothing else is opened, so that no reader waits for a pipe's other end."""
    require_regular(path)
    return path.open("rb")


def require_regular(path: Path) -> None:
    """Refuse a path at which a library that is to open it would find no regular file."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # NUL, or a character that no file name has
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from None
    if not stat.S_ISREG(mode):
        raise NotRegularError(path, mode)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return where a path leads, links followed; one that leads nowhere, or to itself, as far as it can be followed."""
    return Path(os.path.realpath(path))


def read_bytes(path: Path, limit: int = LARGEST_DOCUMENT_BYTES) -> bytes:
    """Return a regular file's content."""
    with open_regular(path) as file:
        size = max(os.fstat(file.fileno()).st_size, 1 << 16)  # what the system makes up has a size of 0
        content = file.read(min(size, limit) + 1) or b""  # memory for so much is taken at once; nothing: no content yet
    if len(content) > limit:
        size_shown = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise OSError(errno.EFBIG, f"it is larger than {size_shown}", os.fspath(path))
    return content


def read_text(path: Path, limit: int = LARGEST_DOCUMENT_BYTES) -> str:
    """Return a regular file's text, without the byte order mark that some editors begin it with."""
    return read_bytes(path, limit).decode("utf-8-sig")


def read_json(
    path: Path, limit: int = LARGEST_DOCUMENT_BYTES, *, digits: int = LONGEST_INTEGER, finite: bool = True
) -> Any:
    """Return what a JSON file holds; arguments as for :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_bytes(path, limit), digits=digits, finite=finite)


def parse_json(data: bytes | str, *, digits: int = LONGEST_INTEGER, finite: bool = True) -> Any:
    """Return the value that JSON stands for."""

    def integer(text: str) -> int:
        if len(text.lstrip("-")) > digits:
            raise DocumentError(f"it holds an integer of more than {digits} digits ({text[:12]}…)")
        return int(text)

    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, parse_int=integer, parse_float=_finite, parse_constant=_finite if finite else float)
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        _too_deep()
    _check_depth(value)
    if _SURROGATE.search(text) or (isinstance(data, str) and not data.isascii()):
        _check_text(value)
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds."""
    try:
        value = tomllib.loads(read_text(path, LARGEST_TOML_BYTES), parse_float=_finite)
    except DocumentError:
        raise
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        _too_deep()
    except ValueError as error:  # TOMLDecodeError, or a number or date that Python refuses
        raise DocumentError(f"it is not TOML ({str(error)[:200]})") from None
    _check_depth(value)
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise DocumentError(f"it holds a number that is no finite double ({text[:12]})")
    return value


def _too_deep() -> NoReturn:
    raise DocumentError(f"it is nested deeper than {DEEPEST}")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list)))
        level = list(itertools.chain.from_iterable(inner))
        if not level:
            return
    _too_deep()


def _check_text(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DocumentError("it holds half a surrogate pair, which no text can hold") from None


def unfinished(file: Path) -> Path:
    """Return the path that holds a file's content until it is complete; a killed process may leave it behind."""
    return file.with_name(f".{file.name}.part")


def replace_files(contents: Mapping[Path, bytes | Iterable[bytes]], *, durable: bool = False) -> None:
    """Write files, each whole, in the order given; all are complete before the first one is replaced."""
    file = Path()
    try:
        for file, content in contents.items():
            if isinstance(content, bytes):
                unfinished(file).write_bytes(content)
            else:
                with unfinished(file).open("wb") as stream:
                    stream.writelines(content)
            if durable:
                sync(unfinished(file))
        for file in contents:
            os.replace(unfinished(file), file)
        if durable:
            for folder in {file.parent for file in contents}:
                sync(folder)
    except OSError as error:
        error.filename = error.filename or os.fspath(file)  # a full disk names none
        raise
    finally:
        for file in contents:
            with suppress(OSError):
                unfinished(file).unlink(missing_ok=True)


def require_writable(folder: Path, refusal: type[HarnessError], remedy: str = "Use another --out.") -> None:
    """Refuse a folder that cannot be made or written: it is tried, and what was made is taken away again."""
    absent = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"\n")
    except OSError as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        why = "it is no folder" if in_the_way else error.strerror
        raise refusal(f"cannot write into {folder}: {why}. {remedy}") from None
    finally:
        for path in absent:
            with suppress(OSError):
                path.rmdir()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a power failure."""
    if sys.platform == "win32" and path.is_dir():  # which cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
