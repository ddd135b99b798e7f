"""Files are replaced whole, together, and when asked for they are on the disk before their names are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.host.files import replace_files, unfinished


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_no_file_is_replaced_before_all_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    replace_files({first: b"1", second: b"1"})
    write = Path.write_bytes

    def full_at_the_second(path: Path, data: bytes) -> int:
        if path == unfinished(second):
            write(path, b"")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        replace_files({first: b"2", second: b"2"})
    assert contents(tmp_path) == {"a": "1", "b": "1"}


def test_what_must_last_is_forced_to_the_disk_before_and_after_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, forced, real = tmp_path / "a", [], os.fsync

    def noted(descriptor: int) -> None:
        forced.append((os.readlink(f"/proc/self/fd/{descriptor}"), file.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    replace_files({file: b"1"})
    assert forced == []
    file.unlink()
    replace_files({file: b"1"}, durable=True)
    assert forced == [(str(unfinished(file)), False), (str(tmp_path), True)]


@pytest.mark.parametrize("step", ["os.replace", "os.fsync"])
def test_an_interrupt_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    replace_files({tmp_path / "a": b"old"})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_files({tmp_path / "a": b"new"}, durable=True)
    assert contents(tmp_path) == {"a": "old"}
