"""How many cases a property gets, what became of them, and what cases start from."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.cases import REFUSED, Ran, Warm
from tests.fuzz.hostile import Draw

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
"""Of new cases for each property (``make fuzz``); 0 for the same few every time."""
SEED = os.environ.get("FUZZ_SEED")
"""With ``FUZZ_MINUTES``: only the batch of this seed, which a failure names."""
BATCH = 100
FOUND = Path(".hypothesis") / "found"


Case = Callable[[Draw], Ran | str]
Fuzz = Callable[..., None]


@pytest.fixture
def fuzz(
    request: pytest.FixtureRequest, record_property: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> Fuzz:
    """``fuzz(door, case, cases=…)`` tries a case again and again; it draws what it needs, says what became of it."""
    if not MINUTES:
        _forget_constants(monkeypatch)

    def run(door: str, case: Case, *, cases: int) -> None:
        counts: Counter[str] = Counter()
        ends = time.monotonic() + 60 * MINUTES
        try:
            while MINUTES:
                number = int(SEED or random.getrandbits(32))
                _try(case, counts, BATCH, number, request.node.nodeid)
                if SEED or time.monotonic() > ends:
                    break
            else:
                _try(case, counts, cases, crc32(request.node.nodeid.encode()), request.node.nodeid)
        finally:
            record_property("fuzz", json.dumps({door: counts}))

    return run


def _forget_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep hypothesis from trying the constants of loaded modules: a seed gives the same cases anywhere."""
    from hypothesis.internal.conjecture import providers

    nothing = providers.Constants()
    monkeypatch.setattr(providers, "_get_local_constants", lambda: nothing)
    providers.CONSTANTS_CACHE.cache.clear()


def _try(case: Case, counts: Counter[str], examples: int, number: int, name: str) -> None:
    """Try a case so often. Nothing is shrunk: a case is a few words, and one that hangs takes half a minute."""
    found = ""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(data=st.data())
    def hold(data: Any) -> None:
        nonlocal found
        try:
            became = case(data.draw)
        except AssertionError as error:
            found = str(error)
            raise
        refused = became.code == REFUSED if isinstance(became, Ran) else became
        counts[{True: "refused", False: "accepted"}.get(refused, refused)] += 1  # type: ignore[call-overload]

    try:
        hold()
    except BaseException:
        if found:
            file = FOUND / f"{name.rpartition('::')[2].partition('[')[0]}-{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            again = f"FUZZ_MINUTES=1 FUZZ_SEED={number} python -m pytest '{name.partition('[')[0]}'"
            file.write_text(f"{again}\n\n{found}\n", encoding="utf-8", errors="backslashreplace")
        raise


# ----------------------------------------------------------------------------------------- counts

_COUNTS: dict[str, Counter[str]] = defaultdict(Counter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "fuzz":
                for door, counts in json.loads(str(value)).items():
                    _COUNTS[door].update(counts)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _COUNTS:
        return
    terminalreporter.section("cases of the fuzzing")
    for door, counts in sorted(_COUNTS.items()):
        said = ", ".join(f"{count:,} {became}" for became, count in sorted(counts.items()))
        terminalreporter.line(f"{door}: {counts.total():,} ({said})")
    terminalreporter.line(f"in all: {_cases():,}")


def _cases() -> int:
    return sum(counts.total() for counts in _COUNTS.values())


# ------------------------------------------------------------------------------- what cases start from

RUN = ("--max-new-tokens", 3, "--energy", "none", "--threads", 1)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractContextManager[Path]]:
    """``with fresh() as folder`` is a new folder for one case, gone afterwards."""
    base = tmp_path_factory.mktemp("cases")

    @contextmanager
    def folder() -> Iterator[Path]:
        made = Path(tempfile.mkdtemp(dir=base))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    return folder


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Path]) -> Path:
    """A random model of 6 layers; exit points 2 and 4 where they are asked for."""
    return make_model("llama", num_hidden_layers=6)


@pytest.fixture(scope="session")
def recorded(warm: Warm, model: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs that differ in their seed alone, as the command leaves them."""
    base = tmp_path_factory.mktemp("recorded")
    for number, name in enumerate(("one", "two")):
        ran = warm.run(
            *("run", "--model", model, "--source", rows_file, "--limit", 3, *RUN, "--seed", number),
            *("--exit-points", "all", "--strategy", "fixed:layer=2", "--strategy", "confidence", "--out", name),
            cwd=base,
            limit_s=120,
        )
        assert ran.code == 0, ran
    return {name: base / name for name in ("one", "two")}
