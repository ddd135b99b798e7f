"""What is left of the machine's memory, read from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

from harness.host.processor import available_memory_bytes


def test_available_memory_respects_the_control_group(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2048 kB\nMemAvailable:    1024 kB\n")
    assert available_memory_bytes(meminfo, tmp_path) == 1 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_bytes(meminfo, tmp_path) == 1 << 20
    (tmp_path / "memory.max").write_text("700000\n")
    (tmp_path / "memory.current").write_text("200000\n")
    assert available_memory_bytes(meminfo, tmp_path) == 500000
    assert available_memory_bytes(tmp_path / "gone", tmp_path / "gone") is None
