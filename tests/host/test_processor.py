"""The processor as Linux shows it: files of a made-up machine, and of a machine that hides them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.host import processor

CPUINFO = "processor : 0\nmodel name : Made Up\nflags : fpu sse {flag}\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processor, "usable_cores", lambda: (0, 1))
    write(tmp_path / "proc" / "cpuinfo", CPUINFO.format(flag=""))
    return tmp_path / "proc"


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    return tmp_path / "sys"


def test_nothing_to_read_is_none(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert processor.governors(gone) is None
    assert processor.hypervisor(gone, gone) is None
    assert processor.quota_cores(gone, gone) is None


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("flags : fpu avx512f avx512_bf16", True),
        ("flags\t\t: amx_bf16 avx512f avx512_vnni", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags : fpu avx512f avx512_vnni", False),
        ("model name : bf16", False),
    ],
)
def test_instructions_for_bfloat16_are_flags(tmp_path: Path, line: str, there: bool) -> None:
    write(tmp_path / "cpuinfo", f"processor : 0\n{line}")
    assert processor.multiplies_bfloat16(tmp_path) is there
    assert not processor.multiplies_bfloat16(tmp_path / "gone")


def test_governors_are_each_named_once(proc: Path, sys: Path) -> None:
    for number, governor in ((0, "powersave"), (1, "powersave"), (2, "performance")):
        write(sys / "devices" / "system" / "cpu" / f"cpu{number}" / "cpufreq" / "scaling_governor", governor)
    assert processor.governors(sys) == ("powersave",)  # core 2 is not ours


@pytest.mark.parametrize(
    ("flag", "files", "name"),
    [
        ("", {}, None),
        ("hypervisor", {}, "unnamed"),
        ("", {"class/dmi/id/product_name": "KVM"}, "KVM"),
        ("", {"class/dmi/id/product_name": "PowerEdge R650", "class/dmi/id/sys_vendor": "Dell Inc."}, None),
        ("hypervisor", {"class/dmi/id/product_name": "m5.large", "class/dmi/id/sys_vendor": "Cloud"}, "Cloud m5.large"),
        ("hypervisor", {"hypervisor/type": "xen", "class/dmi/id/product_name": "HVM domU"}, "xen"),
    ],
)
def test_a_hypervisor_is_named_by_firmware_and_betrayed_by_a_flag(
    proc: Path, sys: Path, flag: str, files: dict[str, str], name: str | None
) -> None:
    write(proc / "cpuinfo", CPUINFO.format(flag=flag))
    for path, text in files.items():
        write(sys / path, text)
    assert processor.hypervisor(proc, sys) == name


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4.0),
        ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "50000 100000"}, 0.5),
    ],
)
def test_the_tightest_quota_on_the_way_up_counts(
    proc: Path, sys: Path, group: str, files: dict[str, str], cores: float | None
) -> None:
    write(proc / "self" / "cgroup", group)
    for path, text in files.items():
        write(sys / "fs" / "cgroup" / path, text)
    assert processor.quota_cores(proc, sys) == cores


def test_a_clock_is_of_usable_cores_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: (0, 2))
    each = [SimpleNamespace(current=mhz) for mhz in (3400.12, 1200.0, 800.0)]
    monkeypatch.setattr("psutil.cpu_freq", lambda percpu: each)
    found = processor.clock()
    assert found is not None
    assert found[0] == (3400.1, 800.0)
    each[2].current = 0.0  # hidden
    assert processor.clock() is None


def test_available_memory_respects_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    assert processor.available_memory_bytes(tmp_path) == 1 << 20
    write(tmp_path / "memory.current", "200000")
    for limit, available in (("max", 1 << 20), ("700000", 500_000), ("100000", 0)):
        write(tmp_path / "memory.max", limit)
        assert processor.available_memory_bytes(tmp_path) == available
