"""The runs behind the documentation's tables are made by one script, and the tables are what these runs hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

import ranked
import write_tables as tables
from harness.records.estimate import MISSING
from harness.running.reading import read_run
from harness.store.record_files import write_document
from harness.store.run_directory import RunDirectory
from harness.study.grid import expand, read_study
from reports.recorded import RecordedRun
from reports.tables.table import Table
from tests.reports.conftest import RunBuilder
from write_tables import STUDIES, TABLES

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "scripts"
FAKE = """#!/bin/sh
printf '{} %s\\n' "$*"
"""


@pytest.fixture
def build() -> type[RunBuilder]:
    return RunBuilder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script in a tree of its own."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    shutil.copytree(SCRIPTS / "results", tmp_path / "docs" / "scripts" / "results")
    (tmp_path / "docs" / "results").mkdir()
    shutil.copy(ROOT / "docs" / "results" / "measure", tmp_path / "docs" / "results")
    (tmp_path / "bin").mkdir()
    (tmp_path / "some" / "where" / "DATA_FOLDER").mkdir(parents=True)
    (tmp_path / "some" / "where" / "MODEL.gguf").touch()
    for name in ("harness", "python"):
        (tmp_path / "bin" / name).write_text(FAKE.format(name))
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def script(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with a command that only prints what it was asked for."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "../../docs/results/measure", "DATA_FOLDER", "MODEL.gguf"], cwd=checkout / "some" / "where",
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_script_makes_what_every_table_is_made_of(checkout: Path) -> None:
    done = script(checkout)
    made = done.stdout.splitlines()
    assert done.returncode == 0
    assert {study for table in TABLES.values() for study in table.studies} == STUDIES.keys()
    for command in STUDIES.values():  # what stands under a table may leave out where things lie
        assert any(set(command.split()) <= set(line.split()) for line in made), command
    assert made[-1] == "python docs/scripts/write_tables.py studies"
    replayed = next(line for line in made if line.endswith("--out traces/smollm2-135m"))
    heads = "`trace --documents 120 --seed 7 --source embedded --source ../shared/data --out T`"
    assert heads in (ROOT / "harness" / "shipped" / "smollm2-135m" / "CARD.md").read_text()
    assert replayed.split()[1:6] == heads.strip("`").split()[:5]  # so that what they have not learned from is replayed
    assert (checkout / "data").resolve() == checkout / "some" / "where" / "DATA_FOLDER"


@pytest.mark.parametrize("file", sorted((SCRIPTS / "results").glob("*.toml")), ids=lambda file: file.stem)
def test_every_study_is_accepted(file: Path) -> None:
    assert [point.config() for point in expand(read_study(str(file)))]


# ------------------------------------------------------------------------------ tables


def test_every_marked_table_of_the_documentation_is_known_and_stands_once() -> None:
    found = [name for page in sorted((ROOT / "docs").rglob("*.md")) for name in tables.blocks(page)]
    assert sorted(found) == sorted(TABLES)


def stored(builder: Any, run: Path) -> RecordedRun:
    """Write a run to a folder, and read it back."""
    manifest = builder.manifest
    samples = len({sample.sample_id for sample in builder.samples})
    task = manifest.tasks[0].model_copy(update={"samples": samples})
    config = {**manifest.config, "max_new_tokens": 3}
    with RunDirectory.create(run, manifest.model_copy(update={"tasks": (task,), "config": config})) as store:
        for window in builder.windows:
            store.commit(window, [sample for sample in builder.samples if sample.window == window.window])
    write_document(run / "summary.json", read_run(run).summary)
    return read_run(run, stored=True)


@pytest.fixture
def runs(tmp_path: Path, build: Any) -> Path:
    """A study of keys and values: one kind of text, six samples, full depth and a fixed exit.

    Full depth decodes two tokens in 0.2 s, the exit in 0.1 s. Half of its completions leave full depth's text at the
    last of two decoded tokens; it runs 5 of 10 layers.
    """
    points = ("full", "fixed:layer=5", "fixed:layer=5@recompute")
    builder = build(points=points, source_kind="embedded", source="embedded: some library")
    for block in range(6):
        builder.window("full", {}, block=block, duration=0.3)
        changed = {"token_ids": (1, 2, 9 if block % 2 else 3), "exit_layers": (10, 5, 5)}
        for point in points[1:]:
            builder.window(point, {**changed, "token_times_s": (0.1, 0.15, 0.2)}, block=block, duration=0.2)
    folder = tmp_path / "studies" / "kv"
    stored(builder, folder / "runs" / "py150-abcdef")
    (folder / "study.json").write_text(json.dumps({"points": {"any-name-abcdef": "abcdef0123"}}))
    return tmp_path / "studies"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    marked = "<!-- table: {} -->\n\nmeasured before\n\n<!-- /table -->\n"
    (folder / "page.md").write_text(f"# Page\n\n{marked.format('kv')}\nAnd:\n\n{marked.format('stopping')}\nThe end.\n")
    return folder


def test_a_table_is_what_its_runs_hold(runs: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(runs), "--docs", str(docs)]
    before = (docs / "page.md").read_text()
    assert tables.main([*given, "--check"]) == 1
    assert "page.md: kv: would change" in capsys.readouterr().out
    assert (docs / "page.md").read_text() == before
    assert tables.main(given) == 0
    after = (docs / "page.md").read_text()
    block, rest = after.split("<!-- /table -->", 1)
    lines = [line for line in block.splitlines() if line]
    shown = [
        f"{kv}: {one}" for kv in ("propagate", "recompute") for one in ("exact prefix", "layers skipped", "decoding")
    ]
    assert lines[2:4] == [
        f"| text | strategy | {' | '.join(shown)} | recompute: own text |",
        f"| :-- | :-- |{' --: |' * 7}",
    ]
    (row,) = lines[4:-1]
    text, strategy, prefix, skipped, decoding, *others, own = [cell.strip() for cell in row.strip("|").split("|")]
    assert others == [prefix, skipped, decoding]
    assert (text, strategy) == ("Python's library", "fixed")
    assert prefix.startswith("0.75")  # three samples keep both decoded tokens, three one of them
    assert own == MISSING  # nobody asked full depth what it would have said
    assert skipped.startswith("50.0 %")  # 5 of 10 layers
    assert decoding.startswith("2.00×")  # 0.2 s and 0.1 s
    assert lines[-1] == (
        "*`harness study docs/scripts/results/kv.toml`; 1 January 2025; Test; float32; 6 documents of each "
        "kind; prompts of `green-code`, 3 new tokens; in brackets 95 % intervals over documents.*"
    )
    assert rest == before.split("<!-- /table -->", 1)[1]  # the runs of the other table are not there
    assert "stopping: left alone, there is no" in capsys.readouterr().out
    assert tables.main([*given, "--check"]) == 0
    (runs / "kv" / "study.json").write_text(json.dumps({"points": {"one-abcdef": "", "other-123456": ""}}))
    tables.main(given)  # a study that is not finished makes no table
    assert "left alone, 1 of 2 points of" in capsys.readouterr().out
    assert (docs / "page.md").read_text() == after


def lines(parts: Any) -> list[list[str]]:
    """The cells of one table, row by row."""
    (table,) = (part for part in parts if isinstance(part, Table))
    return [list(cells) for cells in zip(*(column.texts for column in table.columns), strict=True)]


# ------------------------------------------------------------------------------ the ranking


def test_the_fastest_of_three_is_called_faster_no_more_often_than_one_alone() -> None:
    """Settings that are as fast as full depth, on four texts of 16 documents that they share."""
    generator = np.random.default_rng(0)
    alarms = {1: 0, 3: 0}
    for _ in range(1_000):
        logs = generator.normal(0, 0.1, (4, 16, 1)) + generator.normal(0, 0.1, (4, 16, 3))
        means, halves = logs.mean(1), stdtrit(15, 0.975) * logs.std(1, ddof=1) / 4
        chosen = means.sum(0).argmax()
        rows = [
            pd.Series({f"speedup{part}": number for part, number in zip(("", "_low", "_high", "_n"), (
                *np.exp([mean, mean - half, mean + half]), 16), strict=True)})
            for mean, half in zip(means[:, chosen], halves[:, chosen], strict=True)
        ]  # fmt: skip
        for choices in alarms:
            alarms[choices] += ranked.together(rows, choices=choices)[1] > 1
    faster = pd.Series({"speedup": 1.21, "speedup_low": 1.1, "speedup_high": 1.331})
    mean = ranked.together([faster, None])  # nothing certified there: full depth
    assert mean == pytest.approx((1.1, 1.1**0.5, 1.1**1.5))  # √1.21, half of ln 1.1 either way
    assert alarms[1] > 40, "chosen, and not corrected"
    assert alarms[3] <= 30, "one-sided, 2.5 % are nominal"


@pytest.mark.parametrize(
    ("step_s", "told"),
    [
        (0.06, "slows text drafts down: 0.91× [0.91, 0.91] of text drafts alone"),
        (0.05, "no measurable gain over text drafts: 1.00× [1.00, 1.00] of text drafts alone"),
        (0.04, "worth using: 1.11× [1.11, 1.11] of text drafts alone"),
    ],
)
def test_exits_behind_drafts_from_text_are_held_against_these(
    tmp_path: Path, build: Any, step_s: float, told: str
) -> None:
    points = {"full": 0.1, "full@lossless+lookup": 0.05, "rl@lossless+lookup": step_s}
    run = build(points=tuple(points), kv="recompute", source_kind="embedded", source="embedded: some library")
    for block in range(16):
        for point, step in points.items():
            took = 0.1 + 2 * step
            run.window(point, {"token_times_s": (0.1, 0.1 + step, took), "latency_s": took}, block=block, duration=took)
    found = lines(ranked.ranking({"ranking": [stored(run, tmp_path / "run")]}, tmp_path))
    (line,) = (line for line in found if line[0].startswith("rl"))
    assert told in line


def test_a_strategy_stands_at_what_is_certified(tmp_path: Path, build: Any) -> None:
    """The exit decodes twice as fast. Where it keeps every token it is certified, where it keeps few it is not."""
    kept, lost = (1, 2, 3), (1, 9, 9)
    found = {}
    for study, token_ids in (("kept", kept), ("lost", lost)):
        builder = build(points=("full", "fixed:layer=5"), source_kind="embedded", source="embedded: some library")
        for block in range(16):
            builder.window("full", {}, block=block, duration=0.3)
            changed = {"token_ids": token_ids, "exit_layers": (10, 5, 5)}
            builder.window("fixed:layer=5", {**changed, "token_times_s": (0.1, 0.15, 0.2)}, block=block, duration=0.2)
        found[study] = stored(builder, tmp_path / study)
    sure = {study: ranked.certified([run]) for study, run in found.items()}
    assert sure["lost"] == set()
    assert sure["kept"] == {("Python's library", "fixed", '{"layer": "5"}')}
    assert lines(ranked.promised({"ranking": [found["lost"]]}, tmp_path)) == []
    (line,) = lines(ranked.promised({"ranking": [found["kept"]]}, tmp_path))
    assert "1.50× (layer=5)" in line
    *_, line = lines(ranked.ranking({"ranking": [found["lost"]]}, tmp_path))
    assert line[:2] == ["fixed", "layer=5"]
    assert [cell[:5] for cell in line[2:4]] == ["1.50×", "2.00×"]  # requests, decoding
    assert line[4:] == ["faster, with 100% of the text lost", "0.00", "1.50×", *[MISSING] * 3]
