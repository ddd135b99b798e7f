"""Whatever a name holds, the LaTeX file stays one that compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reports.recorded import RecordedRun
from reports.tables.latex import escape_latex
from reports.tables.latex import to_latex as written
from reports.tables.report import detailed, task_tables

NASTY = "a_b%c&d#e$f^g~h{i}j\\k<l>m|n\"o'p`q--r,,s [x]\n\\end{document} \\input{/etc/passwd} é 中 – × ●"


def to_latex(runs: list[tuple[str, RecordedRun]]) -> str:
    return written(task_tables(runs))


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("fixed:layer=14", "fixed:layer=14"),
        ("10 %", r"10 \%"),
        ("a_b & c#d$", r"a\_b \& c\#d\$"),
        (r"\end{document}", r"\textbackslash{}end\{document\}"),
        ("x--y,,z", "x-{}-y,{},z"),
        ("it's ''", "it's '{}'"),
        ("two\nlines\t", "two lines"),
        ("1.24× [1.17, 1.31] *", r"1.24$\times$ [1.17, 1.31] *"),
        ("–", "{--}"),
        ("é", "é"),
        ("ř中", "r[U+4E2D]"),
        ("\x00\x1b[2J\u202e", r"\textbackslash{}x00\textbackslash{}x1b[2J\textbackslash{}u202e"),
        ("a\ue000b", r"a\textbackslash{}ue000b"),  # not the mark that keeps hyphens apart
    ],
)
def test_characters(text: str, latex: str) -> None:
    assert escape_latex(text) == latex


def test_no_character_is_left_that_means_something() -> None:
    everything = "".join(map(chr, range(0x20, 0x3000)))
    latex = escape_latex(everything)
    known = (
        r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotesingle|textasciigrave"
    )
    known += r"|textmu|dots)\{\}|\{\\char34\}|\{--+\}|\{\}|\\[{}$&#%_]"
    known += r"|\$\\(times|geq|leq|pm|Delta|sigma|bullet|diamond|cdot|approx|rightarrow)\$|\$-\$"
    rest = re.sub(known, "", latex)
    assert rest.count("{}") == 0
    assert not set(rest) & set("\\{}$&#%_^~")
    assert all(character.isascii() or "À" <= character <= "ÿ" for character in rest)


@pytest.fixture
def nasty(build: Any) -> RecordedRun:
    made = build(points=("full", f"evil:name={NASTY.replace('=', '').replace(':', '')}"), source=NASTY)
    for block in range(6):
        for point in made.points:
            scored = {"scores": {"edit_similarity": 0.5 + block / 20}}
            made.window(point, scored, block=block, energy_j=10.0, energy_source="estimate")
    return made.recorded("runs/nasty")


def check(latex: str) -> None:
    for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", latex, re.DOTALL):
        spec = re.search(r"@\{\}((?:[lcr]|p\{\d+pt\})+)@\{\}", tabular)
        assert spec is not None
        rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 3
        counts = {len(re.findall(r"(?<!\\)&", row)) for row in rows if r"\multicolumn" not in row}
        assert counts == {len(re.sub(r"p\{\d+pt\}", "p", spec.group(1))) - 1}
    assert not any(r"\input{/etc" in line for line in latex.splitlines() if not line.startswith("%"))
    assert latex.rstrip().endswith(r"\endoftables")


@pytest.fixture
def long(build: Any) -> list[tuple[str, RecordedRun]]:
    """Four runs of two tasks and 31 operating points each."""
    tasks = ("py150", "javacorpus")
    made = build(points=("full", *(f"fixed:layer={layer}" for layer in range(1, 31))), tasks=tasks)
    for task in tasks:
        for point in made.points:
            made.window(point, {}, task=task)
    run = made.recorded("runs/long")
    return [(f"run {number}", run) for number in range(4)]


def parts_of(latex: str) -> list[str]:
    return re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", latex, re.DOTALL)


def test_a_table_longer_than_a_page_goes_on_in_others(long: list[tuple[str, RecordedRun]]) -> None:
    latex = to_latex(long)
    check(latex)
    assert re.findall(r"\\label\{(.*)\}", latex) == ["tab:py150", "tab:javacorpus"]
    half = len(parts_of(latex)) // 2
    for parts, label in ((parts_of(latex)[:half], "py150"), (parts_of(latex)[half:], "javacorpus")):
        assert f"\\label{{tab:{label}}}" in parts[0]
        shown = []
        for number, part in enumerate(part for part in parts if r"\toprule" in part):
            rows = re.findall(r"\\emph\{(.*?):|\\texttt\{(.*?)\}", part)
            names = [name for _, name in rows if name]
            lines = len(names) + 2 * (len(rows) - len(names))
            assert lines <= 55  # of 8 points each
            assert part.count(r"\toprule") == 1
            assert "operating point" in part.partition(r"\midrule")[0]
            assert (r"(continued)" in re.findall(r"\\caption\{(.*)\}", part)[0]) == (number > 0)
            assert (r"\addtocounter{table}{-1}" in part) == (number > 0)
            assert rows[0][0], "rows stand below the name of their run"
            assert rows[-1][1], "no name stands alone at the end"
            shown += names
        assert shown == 4 * ["full", *(f"fixed:layer={layer}" for layer in range(1, 31))]
        assert len(parts) > 2


def test_notes_that_a_page_has_no_room_for_go_on_as_well(long: list[tuple[str, RecordedRun]]) -> None:
    latex = to_latex([(f"run {number}", long[0][1]) for number in range(80)])
    parts = parts_of(latex)
    notes = [part.partition(r"\scriptsize ")[2] for part in parts if r"\begin{minipage}" in part]
    assert max(map(len, notes)) <= 57 * 120  # lines of 8 points, and letters in a line
    numbers = [int(found) for found in re.findall(r"run (\d+)\. Data:", " ".join(notes))]
    assert numbers == 2 * list(range(80))
    assert len(notes) > 2
    assert len(re.findall(r"\\label", latex)) == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_it_compiles_alone_and_inside_a_paper(
    nasty: RecordedRun, long: list[tuple[str, RecordedRun]], tmp_path: Path
) -> None:
    many = [(f"{name}, again {number}", run) for number in range(10) for name, run in long]
    runs = [(NASTY, nasty), ("again", nasty), *many]
    (tmp_path / "tables.tex").write_text(to_latex(runs), encoding="utf-8")
    paper = (
        r"\documentclass[twocolumn]{article}\usepackage[letterpaper,textwidth=7in,textheight=9in]{geometry}"
        r"\usepackage{booktabs}\begin{document}Before.\input{tables}After.\end{document}"
    )
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    for name in ("tables", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 1000
        assert b"Float too large" not in done.stdout
        numbers = re.findall(
            r"newlabel\{tab:(\w+)\}\{\{(\d+)\}", (tmp_path / f"{name}.aux").read_text(encoding="utf-8")
        )
        assert numbers == [("py150", "1"), ("javacorpus", "2")]


def test_runs_of_a_task_share_one_table_with_a_short_caption_and_a_label(nasty: RecordedRun) -> None:
    latex = to_latex([("first", nasty), ("second", nasty)])
    check(latex)
    assert re.findall(r"\\label\{(.*)\}", latex) == ["tab:py150"]
    (caption,) = re.findall(r"\\caption\{(.*)\}", latex)
    assert "2 runs" in caption
    assert len(caption.split()) < 40
    headings = re.findall(r"\\multicolumn\{(\d+)\}\{@\{\}l\}\{\\emph\{(\w+): ", latex)
    blocks = latex.count(r"\begin{tabular}")  # its names are so long that columns go on below
    assert [name for _, name in headings] == ["first", "second"] * blocks
    assert latex.count(r"\texttt{full}") == 2 * blocks
    below = latex.partition(r"\begin{minipage}")[2]  # what is too long for a caption
    assert "Machine:" in below
    assert "Holm-corrected" in below
    heads = [[head.split("&") for head in pair] for pair in re.findall(r"\\toprule\n(.*)\n(.*)\n", latex)]
    cells = [(over.strip(" \\"), under.strip(" \\")) for pair in heads for over, under in zip(*pair, strict=True)]
    assert ("J/token", "estimate") in cells
    details = written(detailed([("one", nasty), ("one", nasty)]))
    labels = re.findall(r"\\label\{(.*)\}", details)
    assert len(labels) == len(set(labels)) > 2
    assert all(len(caption.split()) < 40 for caption in re.findall(r"\\caption\{(.*)\}", details))
