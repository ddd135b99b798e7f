"""What every benchmark has in common: a reference inside its own process, and a history per class of machine.

Raw times on shared machines are noisy: the machine may be half as fast an hour later. So each round of a benchmark is
measured between two runs of a fixed reference (matrix × vector, 8192 × 576, float32), and the median over the rounds of
its ratio to them is what is compared with the last saved run of the same class of machine: processor, usable cores,
threads. A benchmark that reads memory the way the reference does keeps its ratio when everything else slows down; one
that does something else keeps it less well, which is why a change has to be beyond the noise of both runs to be said.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RATIOS = "ratios to the reference"
MEDIAN = "ratio to the reference"
PRODUCTS = 8  # of the reference, per measurement
QUICK_ROUNDS = 3  # enough for what fails at twice the target, too few for a history
FLOOR = 0.05  # two processes differ by so much without any reason: see docs/results/engine.md

_HISTORY = pytest.StashKey[list[tuple[str, dict[str, Any]]]]()
_SESSION = pytest.StashKey[dict[str, dict[str, Any]]]()
_TABLES = pytest.StashKey[dict[str, list[str]]]()


# ------------------------------------------------------------------------------------- the reference


@pytest.fixture(scope="session")
def reference() -> Callable[[], float]:
    """Return what measures the reference once: seconds per product."""
    import torch

    matrix, row = torch.randn(8192, 576, generator=torch.Generator().manual_seed(0)), torch.ones(1, 576)

    def measure() -> float:
        with torch.inference_mode():
            torch.nn.functional.linear(row, matrix)  # into the caches, as far as it fits
            start = time.perf_counter()
            for _ in range(PRODUCTS):
                torch.nn.functional.linear(row, matrix)
            return (time.perf_counter() - start) / PRODUCTS

    return measure


@pytest.fixture(scope="session")
def rounds_of(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """``rounds_of(wanted)`` is how many rounds are made: few of them see what is twice as slow as its target."""
    quick = request.config.getoption("benchmark_quick")
    return lambda wanted: min(wanted, QUICK_ROUNDS) if quick else wanted


@pytest.fixture
def benchmark(
    benchmark: Any, reference: Callable[[], float], rounds_of: Callable[[int], int], request: pytest.FixtureRequest
) -> Iterator[Any]:
    """pytest-benchmark's fixture, with the reference before and after every round of its pedantic mode."""
    pedantic, references = benchmark.pedantic, list[float]()

    def interleaved(target: Any, *given: Any, **options: Any) -> Any:
        assert not {"setup", "teardown", "iterations"} & options.keys(), "rounds are for the reference here"
        options |= {"rounds": rounds_of(options.get("rounds", 1))}
        return pedantic(
            target,
            *given,
            setup=lambda: references.append(reference()),
            teardown=lambda *_, **__: references.append(reference()),
            **options,
        )

    benchmark.pedantic = interleaved
    yield benchmark
    if benchmark.stats is None or not references:
        return
    rounds = benchmark.stats.stats.data
    kept = references[-2 * len(rounds) :]  # those of warm-up rounds come first
    ratios = [
        seconds / ((before + after) / 2)
        for seconds, before, after in zip(rounds, kept[::2], kept[1::2], strict=True)
    ]  # fmt: skip
    benchmark.extra_info[MEDIAN] = statistics.median(ratios)
    benchmark.extra_info[RATIOS] = ratios
    session = request.config.stash.get(_SESSION, None)
    if session is not None:
        session[short(request.node.nodeid)] = {RATIOS: ratios}


@pytest.fixture(scope="session")
def tables(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Return the lines of the tables that are printed at the end, by title."""
    return request.config.stash.setdefault(_TABLES, {})


@pytest.fixture
def row_tables(tables: dict[str, list[str]]) -> list[str]:
    """Return the lines of the tables of what several rows cost."""
    return tables.setdefault("several rows through a layer, over one row", [])


def report(
    benchmark: Any, what: str, value: float, target: str = "", *, at_least: float = 0.0, at_most: float = math.inf
) -> None:
    """Print a figure beside its target; fail when it is twice as bad as a bound."""
    benchmark.extra_info[what] = round(value, 4)
    print(f"\n  {what}: {value:.4g}  (target {target or (f'≥ {at_least}' if at_least else f'≤ {at_most}')})")
    assert at_least / 2 <= value <= 2 * at_most


# ------------------------------------------------------------------------------------- the history


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption(
        "--benchmark-quick",
        action="store_true",
        help=f"At most {QUICK_ROUNDS} rounds of each benchmark, which are not saved.",
    )
    group.addoption(
        "--benchmark-ratio-fail",
        type=float,
        default=None,
        metavar="PERCENT",
        help="Fail when a benchmark's ratio to the reference grew by more than this, and by more than its noise.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give each class of machine a folder of its own, before pytest-benchmark opens its storage."""
    if config.getoption("benchmark_skip", True) and not config.getoption("benchmark_only", False):
        return
    storage = str(config.option.benchmark_storage)
    if "://" in storage and not storage.startswith("file://"):
        return
    config.option.benchmark_storage = f"{storage.rstrip('/')}/{machine_class(machine())}"
    if config.option.benchmark_quick:
        config.option.benchmark_autosave = False
    config.stash[_HISTORY] = saved(Path(config.option.benchmark_storage.removeprefix("file://")))
    config.stash[_SESSION] = {}


def machine() -> dict[str, Any]:
    """What a time was measured on, and with which torch."""
    import torch

    from harness.host.environment import describe

    facts = describe()
    keys = ("cpu", "architecture", "usable_cores", "torch_threads", "gpus")
    return {**{key: facts[key] for key in keys}, "torch": torch.__version__}


def machine_class(facts: dict[str, Any]) -> str:
    """Name of the folder: what must be equal for two times to be compared. The version of torch is not part of it."""
    words = f"{facts['cpu'] or facts['architecture']} {facts['usable_cores']} cores {facts['torch_threads']} threads"
    return re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", words, flags=re.IGNORECASE)).strip("-").lower()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["harness"] = machine()


def saved(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the saved runs below a folder, the latest first: name and document."""
    files = sorted(folder.glob("**/[0-9][0-9][0-9][0-9]_*.json"), key=lambda file: file.name, reverse=True)
    return [(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in files]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the tables, and each benchmark's ratio beside that of the last saved run of this class."""
    for title, rows in config.stash.get(_TABLES, {}).items():
        terminalreporter.section(title)
        for line in rows:
            terminalreporter.write_line(line)
    session, history = config.stash.get(_SESSION, {}), config.stash.get(_HISTORY, [])
    if not session:
        return
    most = config.getoption("benchmark_ratio_fail", None)
    lines = [compared(name, now[RATIOS], history) for name, now in session.items()]
    terminalreporter.section("ratio to the reference (matrix × vector, 8192 × 576), now and in the last saved run")
    if not history:
        terminalreporter.write_line("The first run on this class of machine: there is nothing to compare with yet.")
    width = max(len(line["name"]) for line in lines)
    terminalreporter.write_line(f"{'':{width}}      now     then   change    noise")
    for line in lines:
        terminalreporter.write_line(
            f"{line['name']:{width}} {_number(line['now'])} {_number(line['then'])} {_percent(line['change'], '+')} "
            f"{_percent(line['noise'])}  {line['verdict']}{'  FAILED' * too_slow(line, most)}"
        )
    torches = {document["machine_info"].get("harness", {}).get("torch") for _, document in history[:1]}
    if torches - {None, machine()["torch"]}:
        terminalreporter.write_line(f"The last saved run had torch {torches.pop()}; this one has {machine()['torch']}.")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make regressions an error where that was asked for."""
    most = session.config.getoption("benchmark_ratio_fail", None)
    history = session.config.stash.get(_HISTORY, [])
    for name, now in session.config.stash.get(_SESSION, {}).items():
        if too_slow(compared(name, now[RATIOS], history), most):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def compared(name: str, now: list[float], history: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return one line of the table: ratios, change and noise as fractions, and what may be said."""
    line: dict[str, Any] = dict.fromkeys(("now", "then", "change", "noise"))
    line |= {"name": name, "now": statistics.median(now), "verdict": "nothing to compare with yet"}
    for _, document in history:
        for bench in document["benchmarks"]:
            if short(bench["fullname"]) == name and bench["extra_info"].get(RATIOS):
                then = bench["extra_info"][RATIOS]
                line["then"] = statistics.median(then)
                line["change"] = line["now"] / line["then"] - 1
                line["noise"] = noise(now, then)
                line["verdict"] = verdict(line["change"], line["noise"])
                return line
    return line


def noise(*runs: list[float]) -> float | None:
    """Return the change that chance alone may show, as a fraction: three standard errors of both medians together.

    From the interquartile ranges of the rounds, and never below what two processes differ by anyway; ``None`` with
    fewer than three rounds.
    """
    total = FLOOR**2
    for ratios in runs:
        if len(ratios) < 3:
            return None
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        error = 1.2533 * (high - low) / 1.349 / len(ratios) ** 0.5 / statistics.median(ratios)
        total += (3 * error) ** 2
    return float(total**0.5)


def verdict(change: float, band: float | None) -> str:
    """Say in words what a change means."""
    if band is None:
        return "too few rounds to tell"
    if abs(change) <= band:
        return "within the noise"
    return "slower, beyond the noise" if change > 0 else "faster, beyond the noise"


def too_slow(line: dict[str, Any], most: float | None) -> bool:
    """Whether a benchmark became slower, beyond its noise, by more than so many percent; never without a limit."""
    return most is not None and line["verdict"].startswith("slower") and 100 * line["change"] > most


def short(node_id: str) -> str:
    """File and test, without the folders that pytest's root decides."""
    file, _, test = node_id.partition("::")
    return f"{file.rpartition('/')[2]}::{test}"


def _number(value: float | None) -> str:
    return f"{'–':>8}" if value is None else f"{value:8.4g}"


def _percent(value: float | None, sign: str = "") -> str:
    return f"{'–':>8}" if value is None else f"{100 * value:{sign}6.1f} %"
