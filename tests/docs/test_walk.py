"""The walk from an empty folder to a paper, as its page shows it: every file as written, every command in its order."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks, commands
from tests.test_plugin import seeing

WALK, OWN_MODEL = "docs/tutorials/walk.md", "docs/tutorials/own-model.md"


def files() -> dict[str, str]:
    """What the page has its reader write: path → text."""
    text = (ROOT / WALK).read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", text, re.S | re.M))


def test_the_page_of_an_own_model_goes_the_same_way() -> None:
    """What is walked below is what that page says, but for the run at its end."""
    *way, run = [words for words in commands(OWN_MODEL) if "my-model" in words]
    assert [words[1:3] for words in way][:2] == [["prepare", "my-model"], ["train", "rl"]]
    walked = list(commands(WALK, in_sentences=False))
    assert [words for words in walked if words in way] == way
    assert run[1] == "run"


@pytest.mark.slow
def test_the_walk_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: Callable[..., Any], install: Callable[[Path], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files().items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    (block,) = blocks(OWN_MODEL, "python")
    exec(compile(block, OWN_MODEL, "exec", dont_inherit=True), {"__name__": "shown"})
    site = install(tmp_path / "my-plugins")
    for words in commands(WALK, in_sentences=False):
        ran = forked(*words[1:], cwd=tmp_path, **seeing(site))
        assert ran.returncode == 0, (shlex.join(words), ran.stderr)
    *_, run = [words for words in commands(OWN_MODEL) if "my-model" in words]
    assert forked(*run[1:], cwd=tmp_path, **seeing(site)).returncode == 0

    assert {"classifier.json", "rl.json", "shortcut.json"} <= set(os.listdir("artefacts/my-model"))
    with Path("runs/accessors/summary.csv").open(encoding="utf-8") as text:
        rows = {row["operating_point"]: row for row in csv.DictReader(text)}
    assert list(rows) == [
        *("full", "turning:cosine=0.5", "turning:cosine=0.7", "turning@lossless", "classifier", "rl", "oracle")
    ]
    assert all(row["n"] == "12" and row["names"] for row in rows.values())
    assert rows["turning@lossless"]["names"] == rows["full"]["names"]
    assert float(rows["turning:cosine=0.5"]["exit_layer_mean"]) < float(rows["turning:cosine=0.7"]["exit_layer_mean"])
    assert "not was" not in Path("runs/my-model/summary.csv").read_text(encoding="utf-8")

    found = json.loads(Path("runs/lines/lm-eval/turning:cosine=0.7/results.json").read_text(encoding="utf-8"))
    spent = found["config"]["early_exit"]["tasks"]["finish_line"]["generated"]
    assert spent["j_per_token"] > 0
    assert spent["energy_source"]

    assert {"tab:accessors", "names"} <= set(re.split(r"[{}& ]+", Path("report/tables.tex").read_text()))
    if shutil.which("pdflatex") is None:
        pytest.skip("all but the paper: pdflatex is not installed (texlive-latex-recommended)")
    typeset(Path("paper.tex"))


def typeset(paper: Path) -> None:
    """See that the page's paper takes the figure and all tables: nothing sticks out, and no letter is a bitmap."""
    text = paper.read_text(encoding="utf-8")
    details = text.replace(r"\input{report/tables}", "\\input{report/tables}\n\\input{report/tables-details}")
    every = "".join(
        rf"\begin{{figure}}\includegraphics{{report/figures/{path.name}}}\end{{figure}}"
        for path in sorted(Path("report/figures").glob("*.pdf"))
    )
    paper.write_text(details.replace(r"\input", every + r"\input", 1), encoding="utf-8")
    for _ in range(2):  # labels
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", paper.name]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    said = done.stdout.decode(errors="replace")
    assert re.findall(r"Overfull .*|LaTeX Warning: .*|<[^>]*pk>", said) == []
