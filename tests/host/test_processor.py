"""The processor as Linux shows it: files of a made-up machine, and of a machine that hides them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.host import processor

CPUINFO = """processor : 0
model name : Made Up
cpu MHz : 2599.998
flags : fpu sse {flag}

processor : 1
cpu MHz : 2400.0
flags : fpu sse {flag}

processor : 2
cpu MHz : 800.0
flags : fpu sse {flag}
"""


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


def add_core(sys: Path, number: int, khz: int, governor: str) -> None:
    folder = sys / "devices" / "system" / "cpu" / f"cpu{number}" / "cpufreq"
    write(folder / "scaling_cur_freq", str(khz))
    write(folder / "scaling_governor", governor)


def test_the_kernel_s_clock_is_preferred_and_of_usable_cores_only(proc: Path, sys: Path) -> None:
    for number, khz in ((0, 3_400_100), (1, 1_200_000), (2, 800_000)):
        add_core(sys, number, khz, "performance")
    assert processor.clock(proc, sys) == ((3400.1, 1200.0), "cpufreq")


def test_without_cpufreq_the_stated_clock_is_taken(proc: Path, sys: Path) -> None:
    assert processor.clock(proc, sys) == ((2600.0, 2400.0), "cpuinfo")


def test_a_clock_that_one_core_hides_is_not_half_told(proc: Path, sys: Path) -> None:
    add_core(sys, 0, 3_400_000, "performance")
    (sys / "devices" / "system" / "cpu" / "cpu1").mkdir()
    found = processor.clock(proc, sys)
    assert found is not None
    assert found[1] == "cpuinfo"


def test_nothing_to_read_is_none(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert processor.clock(gone, gone) is None
    assert processor.governors(gone) is None
    assert processor.hypervisor(gone, gone) is None
    assert processor.quota_cores(gone, gone) is None


def test_governors_are_each_named_once(proc: Path, sys: Path) -> None:
    for number, governor in ((0, "powersave"), (1, "powersave"), (2, "performance")):
        add_core(sys, number, 1_000_000, governor)
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
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpuset:/job", {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_tightest_quota_on_the_way_up_counts(
    proc: Path, sys: Path, group: str, files: dict[str, str], cores: float | None
) -> None:
    write(proc / "self" / "cgroup", group)
    for path, text in files.items():
        write(sys / "fs" / "cgroup" / path, text)
    assert processor.quota_cores(proc, sys) == cores


def test_this_machine_answers_without_a_fault() -> None:
    cores = processor.usable_cores()
    assert cores is None or len(cores) >= 1
    found = processor.clock()
    assert found is None or all(mhz > 0 for mhz in found[0])
    quota = processor.quota_cores()
    assert quota is None or quota > 0


def test_siblings_share_a_physical_core(proc: Path, sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: (0, 1, 2, 8, 9))
    assert processor.sibling_sets(sys) == ((0,), (1,), (2,), (8,), (9,))  # hidden
    for core, listed in ((0, "0,8"), (1, "1,9"), (2, "2,10"), (8, "0,8"), (9, "1,9")):
        write(sys / "devices" / "system" / "cpu" / f"cpu{core}" / "topology" / "thread_siblings_list", listed)
    assert processor.sibling_sets(sys) == ((0, 8), (1, 9), (2,))  # core 10 is not ours
    for core in (0, 1):
        write(sys / "devices" / "system" / "cpu" / f"cpu{core}" / "topology" / "thread_siblings_list", "0-1")
    assert processor.sibling_sets(sys)[0] == (0, 1)
    monkeypatch.setattr(processor, "usable_cores", lambda: None)
    assert processor.sibling_sets(sys) == ()


def test_available_memory_respects_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    assert processor.available_memory_bytes(tmp_path) == 1 << 20
    write(tmp_path / "memory.current", "200000")
    for limit, available in (("max", 1 << 20), ("700000", 500_000), ("100000", 0)):
        write(tmp_path / "memory.max", limit)
        assert processor.available_memory_bytes(tmp_path) == available
