"""Hostile values: texts, numbers, JSON documents, bytes and files as no honest program writes them."""

from __future__ import annotations

import copy
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
"""What hypothesis hands to a test that draws as it goes."""

_PIECES = [
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x00", "\r", "\n", "\t", "\x9b2J", "\x7f", "\u202egpj.exe", "\u2066x"),
    *("\u2028", "\ufeff", "\udcff", "\ud800", "e\u0301", "😀", "日本", "\uffff", "\U0010ffff", "[bold]x[/bold]", "[/]"),
    *(":star:", "{x}", "{0}", "%s%n", "$(id)", "`id`", "'", '"', "\\", "|", "&", "</script><b>", "<!--", "${x}", "#"),
    *("./..", "/", "~", "~nobody", ".", "-", "--", "=", ",", ":", "@", " ", "  x  ", "x", "NUL", "con.txt", "$$", "_"),
]

TEXTS = st.one_of(
    st.sampled_from(_PIECES),
    st.lists(st.sampled_from(_PIECES), min_size=2, max_size=4).map("".join),
    st.text(max_size=12),
    st.sampled_from(["", "x" * 300, "x" * 5000, "é" * 2000, "[" * 3000, "\n" * 50]),
).map(lambda text: text.lstrip("/"))
"""What a name, an id or a value may be: not all of it is Unicode that can be written. As a path it is a relative one,
since a command may write there.
"""

_NUMBERS = (
    *("0", "-0", "1", "2", "3", "-1", "7", "00", "+1", "0x10", "1_000", " 7 ", "٣", "1.5", ".5", "5.", "1e5", "1e-300"),
    *("1e308", "-1e308", "1e309", "5e-324", "inf", "-inf", "nan", "2147483648", "9223372036854775808", "9" * 400),
    *("9" * 5000, "1e", "--1", "", "0.9", "0.5", "4", "16", "1024", "4097", "65536", "1000000"),
)


def numbers() -> st.SearchStrategy[str]:
    """Return numbers as a user may type them, and what is none."""
    return st.one_of(st.sampled_from(_NUMBERS), st.integers().map(str), st.floats().map(repr))


# ------------------------------------------------------------------------------------------- JSON

_LITERALS = {
    "\ue000deep": "[" * 20_000 + "]" * 20_000,
    "\ue000deeper": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "\ue000digits": "9" * 5000,
    "\ue000large": "1e999",
    "\ue000nan": "NaN",
    "\ue000infinity": "-Infinity",
    "\ue000lone": '"\\ud800"',
    "\ue000long": '"' + "x" * 1_000_000 + '"',
    "\ue000many": "[" + "0," * 200_000 + "0]",
}
"""What stands for what no Python value is written as."""

_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**30]),
    st.sampled_from([0.0, -1.5, 1e308, -1e308, 1e-300, 5e-324, 0.5]),
    st.sampled_from(sorted(_LITERALS)),
    TEXTS,
)
VALUES = st.one_of(
    _PLAIN, st.lists(_PLAIN, max_size=3), st.dictionaries(st.sampled_from(["a", "name", "x" * 200, "\x1b[0m"]), _PLAIN)
)
"""What a field of a JSON document may be."""


def as_json(document: Any, *, indent: int | None = None) -> str:
    """Return the text of a document with the literals of :data:`VALUES` in it."""
    text = json.dumps(document, indent=indent)
    for mark, literal in _LITERALS.items():
        text = text.replace(json.dumps(mark), literal)
    return text


def changed_json(draw: Draw, document: Any) -> tuple[Any, str]:
    """Return a copy of a document with one field changed, removed or added, and what was done."""
    changed = copy.deepcopy(document)
    places = list(_places(changed))
    if not places:
        return draw(VALUES), "replaced whole"
    parent, key, path = places[draw(st.integers(0, len(places) - 1))]
    what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "wrap", "scale"]))
    if what == "remove":
        del parent[key]
    elif what == "add" and isinstance(parent, dict):
        parent[draw(TEXTS)] = draw(VALUES)
    elif what == "wrap":
        parent[key] = [parent[key]]
    elif what == "scale" and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * draw(st.sampled_from([-1, 0, 2, 1000, 10**9, 0.5]))
    else:
        parent[key] = draw(VALUES)
        what = f"replace by {ascii(parent[key])[:60]}"
    return changed, f"{path}: {what}"


def changed_value(draw: Draw, document: Any) -> tuple[Any, str]:
    """Return a copy of a document with one value that is another of its type, so that a schema takes it."""
    changed = copy.deepcopy(document)
    places = [place for place in _places(changed) if isinstance(place[0][place[1]], str | int | float)]
    if not places:
        return changed, "nothing"
    parent, key, path = places[draw(st.integers(0, len(places) - 1))]
    old = parent[key]
    if isinstance(old, bool):
        parent[key] = not old
    elif isinstance(old, str):
        parent[key] = draw(TEXTS)
    elif isinstance(old, int):
        parent[key] = draw(st.sampled_from([0, 1, -1, 2, 10**6, 2**31, 10**17]))
    else:
        parent[key] = draw(st.sampled_from([0.0, -1.5, 1e308, -1e308, 1e-300, 5e-324, 1e18]))
    return changed, f"{path}: {ascii(old)[:40]} is {ascii(parent[key])[:60]}"


def _places(document: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield (parent, key, path) of every value in a document; of a long list, its first and last."""
    if isinstance(document, dict):
        keys: list[Any] = list(document)
    elif isinstance(document, list):
        keys = list(range(len(document)))
        keys = keys if len(keys) <= 4 else [0, 1, len(keys) - 1]
    else:
        return
    for key in keys:
        here = f"{path}.{key}".lstrip(".")
        yield document, key, here
        yield from _places(document[key], here)


# ------------------------------------------------------------------------------------------ bytes


def changed_bytes(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """Return data with a fault as disks, editors and people make them, and what it is."""
    start, stop = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    what = draw(st.sampled_from(["cut", "flip", "flip", "remove", "double", "zero", "insert", "swap", "empty"]))
    if what == "flip" and data:
        place, bit = min(start, len(data) - 1), draw(st.integers(0, 7))
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], f"bit {bit} of byte {place} flipped"
    if what == "insert":
        piece = draw(st.one_of(st.binary(min_size=1, max_size=40), TEXTS.map(lambda text: as_json(text).encode())))
        return data[:start] + piece + data[start:], f"{ascii(piece)[:40]} inserted at {start}"
    made = {
        "cut": data[:stop],
        "remove": data[:start] + data[stop:],
        "double": data[:stop] + data[start:stop] + data[stop:],
        "zero": data[:start] + bytes(stop - start) + data[stop:],
        "swap": data[stop:] + data[:stop],
    }
    return made.get(what, b""), f"{what}, bytes {start} to {stop} of {len(data)}"


# ------------------------------------------------------------------------------------------ files

SPECIAL = ("pipe", "endless", "folder", "loop", "dangling", "socket", "sparse", "empty", "absent")
"""What may lie where a file is expected."""


def make_special(path: Path, kind: str) -> None:
    """Put something else in the place of a file, if there is one; it is gone before."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        _endless(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere-at-all")
    elif kind == "socket":
        _socket(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 34)
    elif kind == "empty":
        path.touch()


def _endless(path: Path) -> None:
    """Make a device of endless zeros of our own: who replaces the file must not hit that of the machine."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        if os.geteuid() == 0:
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    """Leave a socket that nobody listens at; its name may not be long, so it is made from beside it."""
    here = Path.cwd()
    with suppress(OSError), socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)
