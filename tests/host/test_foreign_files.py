"""Only regular files are opened, within limits; what passes is bounded; files are replaced whole, together."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.host.files import (
    DEEPEST,
    DocumentError,
    NotRegularError,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_toml,
    replace_files,
)

pytestmark = pytest.mark.timeout(60)


def short(value: object) -> str:
    """Name a case; some documents are too long for a name."""
    return repr(value)[:30]


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[dict[str, Path]]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(tmp_path / "socket"))  # a socket's path may have 107 characters
    yield {
        "named pipe": tmp_path / "pipe",
        "named pipe behind a link": tmp_path / "link",
        "folder": tmp_path / "folder",
        "socket": tmp_path / "socket",
        "device": Path("/dev/zero"),
    }
    listening.close()


def test_nothing_but_a_regular_file_is_opened(strange: dict[str, Path]) -> None:
    for kind, path in strange.items():
        for read in (open_regular, read_bytes, read_json, read_toml):
            with pytest.raises(NotRegularError) as refused:
                read(path)
            assert refused.value.strerror == f"it is a {kind.split(' behind', maxsplit=1)[0]}, not a file"
            assert refused.value.filename == str(path)


def test_a_link_is_followed_and_a_loop_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == {"a": 1}
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as refused:
        read_json(tmp_path / "loop")
    assert refused.value.errno == errno.ELOOP


@pytest.mark.parametrize("name", ["nul\0", "half \ud800", "x" * 5000], ids=short)
def test_a_name_that_no_file_has_is_an_os_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="name") as refused:
        read_bytes(tmp_path / name)
    assert refused.value.strerror


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes") as refused:
        read_bytes(file, 4)
    assert refused.value.errno == errno.EFBIG
    os.truncate(file, 1 << 40)  # a hole: it takes no room
    with pytest.raises(OSError, match="it is larger than 64 MiB"):
        read_json(file)
    with pytest.raises(OSError, match="it is larger than 1 MiB"):
        read_toml(file)
    file.write_bytes(b"")
    assert read_bytes(file) == b""


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ('{"a": [1, -2.5e3, "é", null, true]}', {"a": [1, -2500.0, "é", None, True]}),
        (b"\xef\xbb\xbf[]", []),
        ("999999999999999999", 10**18 - 1),
        ("-999999999999999999", 1 - 10**18),
        (r'"\ud83d\ude00 \\ud800"', "\N{GRINNING FACE} \\ud800"),
        ("[" * DEEPEST + "1" + "]" * DEEPEST, None),
        ('{"a":' * DEEPEST + "1" + "}" * DEEPEST, None),
    ],
    ids=short,
)
def test_json_within_the_bounds_passes_as_it_is(document: str | bytes, value: object) -> None:
    found = parse_json(document)
    assert value is None or found == value


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "it is not JSON (line 1, column 1"),
        ('{"a": 1,\n}', "it is not JSON (line "),
        (b'{"a": "\xff"}', "it is not UTF-8 (byte 7)"),
        ("{}".encode("utf-16"), "it is not UTF-8 (byte 0)"),
        ("[" * (DEEPEST + 1) + "1" + "]" * (DEEPEST + 1), "it is nested deeper than 100"),
        ('{"a":[' * 60 + "1" + "]}" * 60, "it is nested deeper than 100"),
        ("[" * 1_000_000, "it is nested deeper than 100"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "it is nested deeper than 100"),
        ("[1e999]", "it holds a number that is no finite double (1e999)"),
        ("-1e999", "it holds a number that is no finite double (-1e999)"),
        ('{"a": NaN}', "it holds a number that is no finite double (NaN)"),
        ("Infinity", "it holds a number that is no finite double (Infinity)"),
        ("[-Infinity]", "it holds a number that is no finite double (-Infinity)"),
        ("1" * 19, "it holds an integer of more than 18 digits (111111111111…)"),
        ("1" * 1_000_000, "it holds an integer of more than 18 digits (111111111111…)"),
        (r'{"a": ["\ud800"]}', "it holds half a surrogate pair"),
        (r'{"\uDFFF": 1}', "it holds half a surrogate pair"),
        ('"\ud800"', "it holds half a surrogate pair"),
    ],
    ids=short,
)
def test_json_beyond_the_bounds_is_refused_in_one_line(document: str | bytes, reason: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse_json(document)
    assert str(refused.value).startswith(reason)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 120


def test_a_caller_may_allow_what_is_no_number() -> None:
    assert repr(parse_json("[NaN, -Infinity]", finite=False)) == "[nan, -inf]"
    with pytest.raises(DocumentError, match="no finite double"):
        parse_json("[1e999]", finite=False)  # a number, but for a double


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"a = ", "it is not TOML ("),
        (b"a = 1\na = 2", "it is not TOML ("),
        (b"a = '\xff'", "it is not UTF-8 (byte 5)"),
        (b'a = "\\ud800"', "it is not TOML ("),
        (b"a = 2024-13-45", "it is not TOML ("),
        (b"a = " + b"1" * 5000, "it is not TOML ("),
        (b"[a]\nb = [1e999]", "it holds a number that is no finite double (1e999)"),
        (b"a = nan", "it holds a number that is no finite double (nan)"),
        (b"a = -inf", "it holds a number that is no finite double (-inf)"),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, "it is nested deeper than 100"),
        (b"a = " + b"{a=" * 20_000 + b"1" + b"}" * 20_000, "it is nested deeper than 100"),
        (b"[" + b".".join([b"a"] * 60) + b"]\n" + b".".join([b"b"] * 60) + b" = 1", "it is nested deeper than 100"),
    ],
    ids=short,
)
def test_toml_beyond_the_bounds_is_refused_in_one_line(tmp_path: Path, document: bytes, reason: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(document)
    with pytest.raises(DocumentError) as refused:
        read_toml(file)
    assert str(refused.value).startswith(reason)
    assert str(refused.value).isprintable()


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("step", ["os.replace", "os.fsync"])
def test_an_interrupt_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    replace_files({tmp_path / "a": b"old"})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_files({tmp_path / "a": b"new"}, durable=True)
    assert contents(tmp_path) == {"a": "old"}
