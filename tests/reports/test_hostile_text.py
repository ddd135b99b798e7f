"""A run whose every text is hostile, through every medium: nothing hides, nothing is markup, a formula or a command."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.appearance.visible_text import is_hidden
from harness.commands.console import OneLine, stderr
from tests.reports.conftest import RunBuilder

Command = Callable[..., Any]

HOSTILE = (
    "=cmd|'/C calc'!A1\x00\x1b[31m\x1b]0;t\x07\x9b2J\x7f\u202egnp\u2066\u200b\ufeff\u2028\r\nerror: two | `tick` ``` "
    "<script>alert(1)</script> </textarea> \\input{/etc/passwd} $\\frac$ [red]m[/red] [/] {{7*7}} @me #1 ~~x~~"
)
BLOCKS = 12
KEPT = frozenset(
    {"schema_version", "weights", "weights_sha256", "source_kind", "fingerprint", "finish_reason", "created", "started"}
)
"""Fields that are no free text: a reader refuses others, or compares them."""


def poisoned(value: Any, key: str = "") -> Any:
    """Return a JSON value with hostile texts for texts, and a hostile entry more in every mapping of free keys."""
    if isinstance(value, str):
        return value if key in KEPT else f"{HOSTILE}{value}"
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    if isinstance(value, dict):
        return {name: poisoned(inner, name) for name, inner in value.items()}
    return value


def folder_name(number: int) -> str:
    return HOSTILE.replace("/", "").replace("\0", "")[:100] + str(number)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two such runs and nothing else."""
    folder = tmp_path_factory.mktemp("kept")
    for number in (1, 2):
        made = RunBuilder(points=("full", "fixed:layer=5", "margin:threshold=0.5", "margin:threshold=0.9"), source="x")
        for block in range(BLOCKS):
            for place, point in enumerate(made.points):
                layers = (10, 10, 10) if not place else (10, 5, 2 * place)
                texts = {"text": "a\n", "token_texts": ("a", "\x1b", "\u202e"), "reference": "b", "exit_layers": layers}
                texts["session"] = str(block)
                scores = {"edit_similarity": 0.5 + block / 40 - place / 20, "exact_match": 0.0}
                made.window(
                    point, {**texts, "scores": scores}, block=block, duration=(1 + number / 10) / (1 + place),
                    energy_j=5.0, energy_source="x", energy_scope="x", flags=("x",),
                )  # fmt: skip
        broken = {"failed": 1, "energy_j": 5.0, "energy_source": "x"}
        for point in made.points:
            made.window(point, {"error": "it broke"}, block=BLOCKS, **broken)
        write(folder / folder_name(number), made, number)
    return folder


@pytest.fixture
def hostile(kept: Path, tmp_path: Path) -> tuple[Path, Path]:
    """They, in ``runs``."""
    folder = shutil.copytree(kept, tmp_path / "runs")
    return folder / folder_name(1), folder / folder_name(2)


def write(folder: Path, made: Any, number: int) -> None:
    folder.mkdir(parents=True)
    manifest = json.loads(made.manifest.model_dump_json())
    manifest["config"] |= {"model": "x", "out": "x", "x": "x", "seed": number}
    manifest["environment"] |= {"python": "x", "gpus": ["x"], "governor": "x", "packages": {"torch": "x", "x": "x"}}
    manifest["environment"] |= {"git": {"commit": "x", "dirty": True}, HOSTILE: HOSTILE}
    manifest["plugins"] = [{"kind": "strategy", "name": "x", "distribution": "x", "version": str(number)}]
    manifest["meter"] |= {"source": "x", "measured": True, "unavailable": {"rapl": "x"}}
    manifest["model"]["weights_sha256"] = "ab" * 32
    manifest["tasks"][0] |= {"samples": BLOCKS + 1, "fingerprint": "cd" * 32, "detail": {"x": "x"}}
    facts = {"keeps_cache": True, "fills": True, "defers": False, "note": "x"}
    for point in manifest["operating_points"]:
        point |= {"kv": "propagate", "kv_facts": facts, "artefacts": {"x": "ef" * 32}}
    manifest = poisoned(manifest)
    manifest["created"] = f"2025-01-0{number}T00:00:00Z"
    manifest["config"] |= {"kv": "propagate", "batch_size": 1}
    manifest["run"] = ""  # a run without seals, which anybody may have written
    manifest["operating_points"][0] |= {"strategy": "full", "stop": "", "prompt_exit": ""}
    manifest["model"]["weights_format"] = HOSTILE
    for point in manifest["operating_points"]:
        point |= {"artefacts": {f"{HOSTILE}x": "ef" * 32}, "weights_format": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name, records in (("samples", made.samples), ("windows", made.windows)):
        lines = [poisoned(json.loads(record.model_dump_json())) for record in records]
        for line in lines:
            if line.get("scores"):
                line["scores"][HOSTILE] = 0.25
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def hidden(text: str) -> set[str]:
    return {repr(character) for character in text if is_hidden(character) and character not in "\n\t"}


def files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of every file of ours that is text."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in {".png", ".pdf"} and path.name != "plotly.min.js":
            yield str(path.relative_to(folder)), path.read_bytes().decode()


def check_clean(ran: Any, code: int = 0) -> None:
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert not hidden(ran.out)
    assert not hidden(ran.err)


def test_the_terminal(cli: Command, hostile: tuple[Path, Path]) -> None:
    ran = cli("report", *hostile)
    check_clean(ran)
    squeezed = re.sub(r"\s+", "", ran.out)
    assert r"\x1b[31m" in squeezed
    assert "[red]m[/red]" in squeezed
    check_clean(cli("report", *hostile, "--json"))
    for folder in hostile:
        clean = {name for name, text in files(folder) if not hidden(text)}
        assert {"report.md", "summary.csv", "summary.json"} <= clean
    ran = cli("submit", hostile[0])
    assert not hidden(ran.out + ran.err)
    assert "Traceback" not in ran.err


def test_a_notebook(hostile: tuple[Path, Path]) -> None:
    shown = harness.read(hostile[0])._repr_html_()
    assert not hidden(shown)
    check_html(shown)
    assert not {"script", "textarea"} & set(Tags(shown).opened)


@pytest.mark.slow
def test_a_whole_report(cli: Command, hostile: tuple[Path, Path], tmp_path: Path) -> None:
    (hostile[1] / "manifest.json").write_text("{")
    ran = cli("report", tmp_path / "runs", "--out", tmp_path / "out")
    check_clean(ran)
    assert "left out" in ran.err
    found = dict(files(tmp_path / "out"))
    assert {Path(name).suffix for name in found} == {".md", ".csv", ".json", ".tex", ".html", ".svg"}
    for name, text in found.items():
        assert not hidden(text), name
        if name.endswith(".svg"):
            ET.fromstring(text)
    check_markdown(found["report.md"])
    check_latex(found["tables.tex"])
    check_latex(found["tables-details.tex"])
    check_csv(found["summary.csv"])
    assert json.loads(found["summary.json"])[0]["summary"]["rows"][1]["operating_point"].startswith(HOSTILE)
    pages = [text for name, text in found.items() if name.endswith(".html")]
    assert len(pages) == 2
    for page in pages:
        check_html(page)
    assert "script" not in Tags(found["index.html"]).opened


def test_a_comparison(cli: Command, hostile: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "comment.md"
    for more in ([], ["--details"], ["--json"]):
        check_clean(cli("compare", *hostile, *more, "--markdown", file, "--fail-if", "latency_p50>+500%"))
        text = file.read_text()
        assert not hidden(text)
        check_markdown(text)
    ran = cli("compare", *hostile, "--point", f"{HOSTILE}nothing".replace("\0", ""))
    assert not hidden(ran.error)


def test_the_leaderboard(cli: Command, hostile: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "runs" / folder_name(3)
    shutil.copytree(hostile[0], broken)
    (broken / "manifest.json").write_text("{")
    ran = cli("leaderboard", tmp_path / "runs", "--out", tmp_path / "site")
    check_clean(ran)
    assert "1 left out" in ran.out
    found = dict(files(tmp_path / "site"))
    assert len([name for name in found if name.startswith("data/points/")]) >= 6
    for name, text in found.items():
        assert not hidden(text), name
        if name.endswith(".html"):
            check_html(text)
        if name.startswith("data/"):
            assert "<" not in text


TYPED = (
    *("@", "list @", "show @", "report @", "run @", "run --@", "run --model @", "run --limit @", "run --strategy @"),
    *("run --source @", "run --resume @", "run --config @", "train @", "sweep @", "serve --host @", "compare @ @"),
    *("doctor --device @", "leaderboard @ --out @", "trace --model @", "submit @"),
)
"""Commands with something hostile for every ``@``."""


def test_what_a_user_types(cli: Command) -> None:
    for typed in TYPED:
        ran = cli(*(word.replace("@", HOSTILE.replace("\0", "")) for word in typed.split()))
        assert not hidden(ran.error), typed
        errors = [line for line in ran.err.splitlines() if "error:" in line and not line.startswith("left out:")]
        assert len(errors) == 1, typed


def test_logs_and_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("hostile")
    logger.addHandler(OneLine(stderr))
    logger.warning("%s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("it broke")
    said = capsys.readouterr().err
    assert not hidden(said)
    first, second, *_ = said.splitlines()
    assert first.startswith("warning: =cmd")
    assert "error: two" in first
    assert second == "error: it broke"


def test_a_defect(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr("harness.commands.lookup.list_", broken)
    ran = cli("list")
    assert ran.code == 70
    assert not hidden(ran.err)
    assert "Traceback" in ran.err


def check_markdown(text: str) -> None:
    """Nothing of a name is markup, and every table has as many cells as its head."""
    assert "<script" not in text
    assert "[red]" not in text.replace("\\[red]", "")
    assert "@me" not in re.sub(r"`[^`]*`", "", text)
    assert {line for line in text.splitlines() if line.startswith("```")} <= {"```", "```text"}
    assert not [line for line in text.splitlines() if line.startswith(("error:", "=cmd"))]
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.replace("\\|", ""))
        else:
            assert len({row.count("|") for row in block}) <= 1
            block = []


def check_latex(text: str) -> None:
    for line in text.splitlines():
        assert line.startswith("%") or "\\input" not in line
        assert line.startswith("%") or "\\frac" not in line


def check_csv(text: str) -> None:
    for row in csv.reader(io.StringIO(text)):
        for cell in row:
            assert not cell.lstrip().startswith(("=", "@", "+")), cell
            if cell.startswith("-"):
                float(cell)


class Tags(HTMLParser):
    """Collects what a page opens."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def check_html(text: str) -> None:
    assert "<script>alert" not in text
    assert "</textarea>" not in text
