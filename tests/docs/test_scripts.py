"""The runs behind the documentation's tables are made by one script, and the tables are what these runs hold."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

import kept
import measured
import ranked
import write_tables as tables
from harness.config.strategies import demo_strategies, parse_all
from harness.records.estimate import MISSING
from harness.registry import STRATEGIES
from harness.running.reading import read_run
from harness.store.record_files import write_document
from harness.store.run_directory import RunDirectory
from harness.study.grid import expand, read_study
from reports.published.against import against_green_code
from reports.recorded import RecordedRun
from reports.tables.table import Table
from tests.reports.conftest import RunBuilder
from tests.reports.published.test_against import measured as agents
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


def stored(builder: Any, run: Path, **config: Any) -> RecordedRun:
    """Write a run to a folder, and read it back."""
    manifest = builder.manifest
    samples = len({sample.sample_id for sample in builder.samples})
    task = manifest.tasks[0].model_copy(update={"samples": samples})
    config = {**manifest.config, "max_new_tokens": 3, **config}
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
    assert tables.main(given) == 0
    assert "page.md: kv: changed" in capsys.readouterr().out
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
        "kind; prompts of `green-code`, 3 new tokens; in brackets 95 % intervals over documents, which are one "
        "code base's where they are Python's library or the JDK.*"
    )
    assert rest == before.split("<!-- /table -->", 1)[1]  # the runs of the other table are not there
    assert tables.main(given) == 0
    assert "stopping: left alone, there is no" in capsys.readouterr().out
    assert (docs / "page.md").read_text() == after
    (runs / "kv" / "study.json").write_text(json.dumps({"points": {"one-abcdef": "", "other-123456": ""}}))
    tables.main(given)  # a study that is not finished is not kept in place of one that is
    assert "kv: kept as it was, 1 of 2 points of" in capsys.readouterr().out
    assert (docs / "page.md").read_text() == after


def test_a_table_is_derived_from_what_is_kept_beside_its_page(runs: Path, docs: Path) -> None:
    tables.main([str(runs), "--docs", str(docs)])
    page, kept = docs / "page.md", docs / tables.DATA / "kv.json"
    shutil.rmtree(runs)
    check = [str(runs), "--docs", str(docs), "--check"]
    assert tables.main(check) == 0
    before = page.read_text()
    page.write_text(before.replace("2.00×", "2.10×"))
    assert tables.main(check) == 1
    assert "2.10×" in page.read_text(), "it only looks"
    tables.main(check[:-1])
    assert page.read_text() == before
    kept.write_text(kept.read_text().replace('"decode_speedup":{"value":2.0', '"decode_speedup":{"value":2.1'))
    assert tables.main(check) == 1
    assert kept.stat().st_size < 20_000


def test_what_only_windows_tell_is_kept_too(tmp_path: Path) -> None:
    """GREEN-CODE's page pairs windows; from the file it shows the same rows, and names those that it leaves out."""
    run = agents()
    _, documents = measured.TELLS["green-code"]([run], tmp_path)
    file = tmp_path / "green-code.json"
    kept.Kept(command="", documents=dict(documents)).write(file)
    table, left_out = measured.green_code({"green-code": kept.read(file)})
    (comparison,) = against_green_code([run])
    assert isinstance(table, Table)
    skipped = dict(zip(table.columns[0].cells, table.columns[1].texts, strict=True))
    settings = ("full depth", "threshold 0.6", "threshold 0.9")
    assert table.rows == sum(row.setting in settings for row in comparison.rows)
    assert skipped["here, KV none"] == "20.0 %"  # 8 of 10 layers, the last setting shown
    assert tuple(heading for _, heading in table.groups) == settings
    assert "fixed:layer=5" in str(left_out)


def test_published_tables_are_what_is_kept_of_them() -> None:
    """Vacuous for studies of which nothing is kept yet."""
    assert tables.main(["--check"]) == 0


# ------------------------------------------------------------------------------ commands and their tables

MADE_BY = re.compile(r"^\*(`harness (?:run|study|sweep) [^*]+)\*$", re.M)


def points_of(command: str) -> set[str]:
    """Strategies that a command asks for, as written, each alone and with its options."""
    _, kind, *rest = shlex.split(command)
    given = [value for flag, value in itertools.pairwise(rest) if flag == "--strategy"]
    if kind == "study":
        only = dict(value.split("=") for flag, value in itertools.pairwise(rest) if flag == "--only")
        for point in expand(read_study(rest[0])):
            if only.items() <= point.settings.items():
                given += [str(each) for each in point.config().strategies]
    elif not given:
        given = list(demo_strategies((22, 26)))
    specs = parse_all(given, in_run=True)
    return {"full"} | {spec.name for spec in specs} | {str(spec).partition("@")[0] for spec in specs}


def shown_of(section: str) -> set[str]:
    """Strategies that the rows of a section's tables are of; without a table, those that it names."""
    found = set()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    heads = {"strategy", "operating point"}
    for row in rows:
        place = next((place for head in rows for place, cell in enumerate(head) if cell in heads), None)
        found |= {row[place].strip("`")} if place is not None else set()
        found |= {f"rl:threshold={of}" for of in re.findall(r"\*\*threshold ([\d.]+)\*\*", row[0])}
        found |= set(re.findall(r"\*\*(fixed[^*]*)\*\*", row[0]))
    found |= set() if rows else set(re.findall(r"`([^`\s]+)`", section))
    return {point.partition("@")[0].partition(",")[0] for point in found if re.split("[:@,]", point)[0] in STRATEGIES}


def made_tables() -> Iterator[Any]:
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text, begin = page.read_text(), 0
        for found in MADE_BY.finditer(text):
            section = text[max(begin, text.rfind("\n## ", 0, found.start())) : found.start()]
            commands = [" ".join(one.split()) for one in re.findall("`(harness [^`]+)`", found[1])]
            yield pytest.param(commands, section, id=f"{page.stem}-{text.count(chr(10), 0, found.start()) + 1}")
            begin = found.end()


@pytest.mark.parametrize(("commands", "section"), list(made_tables()))
def test_a_command_makes_every_row_of_its_table(commands: list[str], section: str) -> None:
    asked = set().union(*map(points_of, commands))
    agents = {re.sub(":agent=[^:]*", "", point) for point in asked}
    assert shown_of(section) - asked - agents == set(), commands


def test_rows_of_a_table_are_found() -> None:
    """So that the test above compares something."""
    shown = {test.id.rpartition("-")[0]: shown_of(test.values[1]) for test in made_tables()}
    assert {"swift", "clasp"} <= shown["lossless"]
    assert {"rl:threshold=0.6", "fixed:layer=14"} <= shown["green-code"]
    assert {"classifier", "lte"} <= shown["ranking"]


def test_what_every_table_is_made_of_is_kept_beside_the_pages() -> None:
    found = {file.stem for file in (ROOT / "docs" / tables.DATA).glob("*.json")}
    assert found <= STUDIES.keys()
    assert STUDIES.keys() - found <= {"by-token", "scores"}, "replays, with no times in them, wait for their traces"


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / tables.DATA).glob("*.json")), ids=lambda file: file.stem)
def test_what_is_kept_is_of_its_command(file: Path) -> None:
    found = kept.read(file)
    assert found.command == STUDIES[file.stem]
    if found.runs:
        rows = {row.operating_point.partition("@")[0] for run in found.runs for row in run.summary.rows}
        assert rows <= points_of(found.command)


def lines(parts: Any) -> list[list[str]]:
    """The cells of one table, row by row."""
    (table,) = (part for part in parts if isinstance(part, Table))
    return [list(cells) for cells in zip(*(column.texts for column in table.columns), strict=True)]


# ------------------------------------------------------------------------------ the ranking


def test_strategies_that_gain_nothing_are_called_faster_in_one_table_in_twenty() -> None:
    """Twelve strategies that are as fast as full depth, on four texts of 16 documents that they share."""
    generator = np.random.default_rng(0)
    alarms = {1: 0, 12: 0}
    for _ in range(300):
        logs = generator.normal(0, 0.1, (4, 16, 1)) + generator.normal(0, 0.1, (4, 16, 12))
        means, halves = logs.mean(1), stdtrit(15, 0.975) * logs.std(1, ddof=1) / 4
        rows = [
            [
                pd.Series({f"speedup{part}": number for part, number in zip(("", "_low", "_high", "_n"), (
                    *np.exp([mean, mean - half, mean + half]), 16), strict=True)})
                for mean, half in zip(means[:, one], halves[:, one], strict=True)
            ]
            for one in range(12)
        ]  # fmt: skip
        for tests in alarms:
            alarms[tests] += any(ranked.together(each, tests=tests)[1] > 1 for each in rows)
    assert alarms[1] > 0.1 * 300, "the best of twelve, and not corrected"
    assert alarms[12] <= 0.04 * 300, "one-sided, 2.5 % are nominal"


@pytest.mark.parametrize(
    ("step_s", "told"),
    [
        (0.06, "slows text drafts down: 0.91× of text drafts alone"),
        (0.05, "no measurable gain over text drafts: 1.00× of text drafts alone"),
        (0.04, "worth using: 1.11× of text drafts alone"),
    ],
)
def test_exits_behind_drafts_from_text_are_held_against_these(
    tmp_path: Path, build: Any, step_s: float, told: str
) -> None:
    steps = {"full": 0.1, "full@lossless+lookup": 0.05, "rl@lossless+lookup": step_s}
    run = build(points=tuple(steps), source_kind="embedded", source="embedded: some library", kv="recompute")
    for block in range(16):
        for point, step in steps.items():
            times = (0.1, 0.1 + step, 0.1 + 2 * step)
            sample = {"token_ids": (1, 2, 3), "token_times_s": times, "ttft_s": 0.1, "latency_s": times[-1]}
            run.window(point, {**sample, "sample_id": f"{block}"}, block=block, duration=times[-1])
    summary = kept.KeptRun(created="", protocols=(), summary=stored(run, tmp_path / "run").summary)
    found = lines(ranked.ranking({"ranking": kept.Kept(command="", runs=(summary,))}))
    (line,) = (line for line in found if line[0].startswith("rl"))
    assert told in line
