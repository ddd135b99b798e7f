"""Bandwidth: sane on a small buffer, bounded on a large one, and torch left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.metering import bandwidth, measure_bandwidth

SMALL = 8 << 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_faster_kernel_counts(dtype: str) -> None:
    reading = measure_bandwidth(dtype, "cpu", 1, buffer_bytes=SMALL)
    assert set(reading.rates) == {"torch.nn.functional.linear", "torch.mv", "torch.mm"}
    assert reading.bytes_per_s == reading.rates[reading.kernel] == max(reading.rates.values())
    assert 1e8 < reading.bytes_per_s < 1e13
    assert (reading.dtype, reading.threads) == (dtype, 1)
    assert SMALL <= reading.buffer_bytes < 1.01 * SMALL
    assert reading.limited_by is None


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    assert measure_bandwidth("float32", "cpu", before + 1, buffer_bytes=SMALL).threads == before + 1
    assert torch.get_num_threads() == before
    assert measure_bandwidth("float32", "cpu", None, buffer_bytes=SMALL).threads == before


def test_the_buffer_takes_a_quarter_of_the_available_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_memory_bytes", lambda: 2 * SMALL)
    reading = measure_bandwidth("float32", "cpu", 1, buffer_bytes=SMALL)
    assert reading.limited_by == "memory"
    assert SMALL // 2 <= reading.buffer_bytes < 1.01 * SMALL // 2


def test_the_buffer_takes_no_more_time_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "FILL_BUDGET_S", 0.0)
    monkeypatch.setattr(bandwidth, "BLOCK_BYTES", 1 << 20)
    reading = measure_bandwidth("float32", "cpu", 1, buffer_bytes=SMALL)
    assert (reading.limited_by, reading.buffer_bytes) == ("time", 1 << 20)


def test_by_default_the_buffer_is_four_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "ASSUMED_CACHE_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 2 << 20)
    reading = measure_bandwidth("float32", "cpu", 1)
    assert (reading.buffer_bytes, reading.cache_bytes) == (8 << 20, 2 << 20)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: None)
    reading = measure_bandwidth("float32", "cpu", 1)
    assert (reading.buffer_bytes, reading.cache_bytes) == (4 << 20, None)


def add_cache(folder: Path, *, level: int, kind: str, shared: str, size: str) -> None:
    folder.mkdir(parents=True)
    for name, value in (("level", str(level)), ("type", kind), ("shared_cpu_list", shared), ("size", size)):
        (folder / name).write_text(value + "\n")


def test_cache_instances_count_once_each(tmp_path: Path) -> None:
    for cpu in range(4):
        caches = tmp_path / f"cpu{cpu}" / "cache"
        add_cache(caches / "index0", level=1, kind="Data", shared=str(cpu), size="48K")
        add_cache(caches / "index1", level=1, kind="Instruction", shared=str(cpu), size="64K")
        add_cache(caches / "index3", level=3, kind="Unified", shared="0-1" if cpu < 2 else "2-3", size="32768K")
    (tmp_path / "cpu0" / "cache" / "index9").mkdir()
    assert bandwidth.last_level_cache_bytes(tmp_path) == 2 * 32 << 20
    assert bandwidth.last_level_cache_bytes(tmp_path / "cpu0") is None
