"""A file is replaced whole or not at all, and nothing half-written stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import StoreError
from reports.files import replace_file, write_files


def test_files_hold_exactly_their_text(tmp_path: Path) -> None:
    paths = write_files(tmp_path, {"a.csv": "é\r\n", "b.md": ""})
    assert [path.read_bytes() for path in paths] == ["é\r\n".encode(), b""]
    assert sorted(tmp_path.iterdir()) == list(paths)


@pytest.mark.parametrize(("failure", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, StoreError)])
def test_a_stop_in_the_middle_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], raised: type[BaseException]
) -> None:
    (tmp_path / "report.md").write_text("old")

    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:1])
        raise failure

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(raised):
        replace_file(tmp_path / "report.md", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.md": "old"}
