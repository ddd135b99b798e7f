"""Runs whose records were changed by hand and sealed anew: refused by what other records say, with the place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.running.rescore import examine_submission
from tests.run_files import Records, reseal

Command = Callable[..., Any]
Change = Callable[[Records, Records], object]

FIXED, LOSSLESS = "fixed:layer=6", "fixed:layer=6@lossless"
HONEST = [
    ("--batch-size", 2, "--decode", "lossy,lossless+lookup", "--stop", "line"),
    ("--arrival-rate", 50, "--kv", "none,skip"),
    ("--weights-format", "float32,int8", "--attribute"),
    ("--strategy", "swift", "--strategy", "clasp"),
]


def calm(windows: Records, samples: Records) -> None:
    """Clear the flags of a machine that did other things meanwhile."""
    for window in windows:
        window["flags"] = []


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's one run is kept."""
    return tmp_path_factory.mktemp("kept") / "one"


@pytest.fixture
def run(request: pytest.FixtureRequest, kept: Path, tmp_path: Path) -> Path:
    """A finished run, sealed."""
    if not kept.exists():
        made = ("--strategy", "full", "--strategy", "fixed:layer=6", "--decode", "lossy,lossless")
        assert request.getfixturevalue("tiny_run")(*made, "--max-new-tokens", 8, "--out", kept).code == 0
        reseal(kept, calm)
        assert refused(kept) == {}
    return Path(shutil.copytree(kept, tmp_path / "one"))


def refused(directory: Path) -> dict[str, str]:
    return {check.name: check.detail for check in examine_submission(directory).checks if not check.passed}


def of(point: str, records: Records) -> Records:
    return [record for record in records if record["operating_point"] == point and not record.get("warmup")]


def one(point: str = FIXED, **values: Any) -> Change:
    """Set fields of the operating point's last sample."""
    return lambda windows, samples: of(point, samples)[-1].update(values)


def scored(point: str = FIXED, **scores: float | None) -> Change:
    return lambda windows, samples: of(point, samples)[-1]["scores"].update(scores)


def faster(windows: Records, samples: Records) -> None:
    for sample in of(FIXED, samples):
        times = [time / 1000 for time in sample["token_times_s"]]
        sample |= {"token_times_s": times, "ttft_s": times[0], "latency_s": times[-1]}


def shorter(windows: Records, samples: Records) -> None:
    for window in of(FIXED, windows):
        window["duration_s"] /= 1000


def first(point: str) -> Change:
    def change(windows: Records, samples: Records) -> None:
        for sample in of(point, samples):
            sample["token_ids"][0] = (sample["token_ids"][0] + 1) % 16

    return change


def flattering(windows: Records, samples: Records) -> None:
    """The reference is what was generated, and the scores say so."""
    sample = of(FIXED, samples)[-1]
    sample |= {"reference": sample["text"], "reference_ids": sample["token_ids"]}


def better(windows: Records, samples: Records) -> None:
    """The text is the reference, and the tokens are not."""
    sample = of(LOSSLESS, samples)[-1]
    sample["text"] = sample["reference"]


def layer(place: int, number: int) -> Change:
    def change(windows: Records, samples: Records) -> None:
        of(FIXED, samples)[-1]["exit_layers"][place] = number

    return change


def counted(windows: Records, samples: Records) -> None:
    of(FIXED, windows)[-1]["tokens"] += 1


def dropped(windows: Records, samples: Records) -> None:
    worst = of(FIXED, samples)[-1]
    samples.remove(worst)
    next(window for window in windows if window["window"] == worst["window"])["tokens"] -= len(worst["token_ids"])


def picked(windows: Records, samples: Records) -> None:
    """The fastest window twice in place of another."""
    best, worst = sorted(of(FIXED, windows), key=lambda window: window["duration_s"])[:2]
    samples[:] = [sample for sample in samples if sample["window"] != worst["window"]]
    again = [sample | {"window": worst["window"]} for sample in samples if sample["window"] == best["window"]]
    samples.extend(again)
    worst |= {**best, "window": worst["window"]}


FORGERIES: dict[str, tuple[Change, str, str]] = {
    "a score that none can be": (scored(edit_similarity=5.0), "records", r"sample .* of fixed.*\(window \d+\).*0…1"),
    "a score of another text": (scored(edit_similarity=0.99), "scores", r"edit_similarity of sample .* is 0.99 and"),
    "a score taken away": (scored(edit_similarity=None), "scores", "edit_similarity of sample .* is not recorded and"),
    "another reference": (flattering, "tokens", "sample .* of fixed.* has another prompt or reference than sample"),
    "another text": (better, "tokens", "sample .*@lossless .* has the tokens of sample .* and another text"),
    "another first token": (first(FIXED), "tokens", "the first token of sample .* is "),
    "another first token of a lossless row": (first(LOSSLESS), "tokens", "the first token of sample .* is "),
    "a first token before its time": (one(ttft_s=1e-6), "times", "sample .* has a first token of 1e-06 s"),
    "fewer layers than tokens left at": (one(layers_executed=1), "work", r"sample .* counts 1 layers for \d tokens"),
    "more layers read than executed": (one(layers_read=9999), "work", "sample .* read 9999 layers"),
    "a prompt that left early": (layer(0, 6), "work", "the first token of sample .* left after layer 6"),
    "times of a thousandth": (faster, "times", r"most windows of fixed.* 2 times as long as their requests"),
    "a window of a thousandth": (shorter, "times", r"window \d+ of fixed.* took .* s and its requests"),
    "more layers than the prompt has": (
        one(prompt_layers_skipped=9999),
        "work",
        "sample .* layers for .* tokens of its prompt, which have",
    ),
    "more layers than there are": (one(layers_executed=9999), "work", r"sample .* counts 9999 layers for \d tokens"),
    "a layer that is no exit point": (layer(2, 5), "work", "sample .* left after layer 5"),
    "a window with more tokens": (counted, "work", r"window \d+ of fixed.* counts 8 tokens|counts 9 tokens"),
    "a sample less": (dropped, "work", r"fixed:layer=6 on py150 has 2 of 3 samples in repeat 0"),
    "one window twice": (picked, "work", r"fixed:layer=6 on py150 has 2 windows that count of block \d"),
    "a sample that cannot count": (one(ttft_s=-1.0), "records", "sample .* does not count: a clock that"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGERIES)
def test_what_other_records_contradict_is_refused_with_its_place(run: Path, name: str) -> None:
    change, check, said = FORGERIES[name]
    reseal(run, change)
    found = refused(run)
    assert check in found, found
    assert "\n" not in found[check]
    assert re.search(said, found[check]), found


@pytest.mark.slow
@pytest.mark.parametrize("how", HONEST, ids=["batches", "arrivals", "formats", "searches"])
def test_honest_runs_contradict_nothing(tiny_run: Command, tmp_path: Path, how: tuple[object, ...]) -> None:
    made = ("--strategy", "full", "--strategy", "confidence:threshold=0.2", "--strategy", "oracle")
    ran = tiny_run(*made, *how, "--max-new-tokens", 12, "--out", tmp_path / "out")
    assert ran.code == 0, ran
    assert refused(tmp_path / "out").keys() <= {"windows"}  # this machine may have been busy
