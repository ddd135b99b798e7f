"""Plug-ins of another, separately installed package are listed, shown and used like built-in ones."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.registry import KV_POLICIES, METRICS, SCORES, TASKS, Registry
from reports.leaderboard.site import read_script

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party"

Shell = Callable[..., subprocess.CompletedProcess[str]]
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """A folder the fixture project is installed into."""
    return install(PROJECT)


def seeing(*sites: Path) -> dict[str, Any]:
    return {"env": os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sites)), "COLUMNS": "120"}}


def test_it_runs(site: Path, forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    ran = forked(
        *("run", "--strategy", "every-nth:n=2:layer=4,6", "--model", tiny_llama, "--source", rows_file, "--limit", 2),
        *("--max-new-tokens", 6, "--energy", "none", "--threads", 1, "--out", "out", "--json"),
        cwd=tmp_path,
        **seeing(site),
    )
    assert ran.returncode == 0, ran.stderr
    names = [row["operating_point"] for row in json.loads(ran.stdout)["rows"]]
    assert names == ["full", "every-nth:n=2:layer=4", "every-nth:n=2:layer=6"]
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        if sample["operating_point"] != "every-nth:n=2:layer=6":
            continue
        start = len(sample["prompt_ids"]) - 1
        positions = range(start, start + len(sample["token_ids"]))
        expected = [6 if position % 2 == 0 and position > start else 12 for position in positions]
        assert sample["exit_layers"] == expected


def test_two_packages_that_claim_one_name_are_refused(
    site: Path, see: Callable[[Path], None], plug_in: Callable[..., Path], cli: Command
) -> None:
    see(site)
    plug_in("recipes", "", TASKS)
    line = cli("list", "tasks").error
    assert line.startswith("error: two packages register the task 'recipes': ")
    assert "outside-recipes (outside_recipes_" in line
    assert "every-nth-exit (" in line
    assert "Uninstall one of them" in line


def test_a_package_that_claims_a_name_of_ours_is_refused(plug_in: Callable[..., Path], cli: Command) -> None:
    plug_in("confidence", "")
    line = cli("list", "strategies").error
    assert line.startswith("error: two packages register the strategy 'confidence': ")
    assert "early-exit-harness" in line


NAMES = {
    "strategies": "every-nth",
    "tasks": "recipes",
    "protocols": "first-half",
    "scores": "balanced_brackets",
    "meters": "ten-watts",
    "metrics": "completion_tokens",
}


def test_everything_it_brings_is_listed(site: Path, forked: Shell, tmp_path: Path) -> None:
    listed = forked("list", cwd=tmp_path, **seeing(site)).stdout.splitlines()
    assert any("Exit with every n-th token" in line for line in listed)
    for name in NAMES.values():
        rows = [line for line in listed if line.startswith(f"{name} ") and line.strip() != name]  # a title is no row
        assert [row.rstrip().endswith("every-nth-exit") for row in rows] == [True]
    assert "every-nth" not in forked("list", "strategies", cwd=tmp_path).stdout


IS_NO_SCORE = "is not a subclass of harness.contracts.Score that has a title."
ODD = "class Outside:\n    'Odd.'"


@pytest.mark.parametrize(
    ("registry", "source", "said"),
    [
        (SCORES, ODD, IS_NO_SCORE),
        (SCORES, "from harness.contracts import Score\nclass Outside(Score):\n    'Odd.'", IS_NO_SCORE),
        (
            SCORES,
            "from harness.contracts import Score\nOutside = type('Odd', (Score,), {'title': 'odd'})()",
            IS_NO_SCORE,
        ),
        (METRICS, "Outside = 5", "is not a harness.contracts.Metric."),
        (TASKS, "Outside = 5", "is not a class of tasks."),
        (KV_POLICIES, ODD, "is not a subclass of harness.contracts.KVPolicy."),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(
    plug_in: Callable[..., Path], cli: Command, registry: Registry[Any], source: str, said: str
) -> None:
    plug_in("odd", source, registry)
    ran = cli("show", "odd")
    assert ran.code == 2
    assert ran.err.startswith(f"error: the {registry.noun} 'odd' of outside-odd (outside_odd_")
    assert ran.err.endswith(f":Outside) {said} Mend that package, or uninstall it.\n")


RAISES = """
@dataclass(frozen=True)
class Outside(Strategy):
    def should_exit(self, view):
        torch.zeros(2).reshape(3)
"""


def test_an_error_of_its_strategy_is_its_defect(plug_in: Callable[..., Path], tiny_run: Command) -> None:
    plug_in("boom", RAISES)
    ran = tiny_run("--strategy", "boom")
    assert ran.code == 70
    assert "RuntimeError: shape '[3]' is invalid" in ran.err
    assert ran.err.splitlines()[-1].startswith(
        "error: this is a defect of outside-boom (the strategy 'boom'), not of the harness: "
    )


@pytest.fixture(scope="module")
def made(site: Path, forked: Shell, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the package's strategy, task, protocol, scores and meter."""
    folder = tmp_path_factory.mktemp("made")
    ran = forked(
        *("run", "--strategy", "every-nth:n=2:layer=4", "--task", "recipes", "--protocol", "first-half"),
        *("--model", tiny_llama, "--energy", "ten-watts", "--threads", 1, "--out", "run"),
        cwd=folder,
        **seeing(site),
    )
    assert ran.returncode == 0, ran.stderr
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, for the command line that does not see the package."""
    return shutil.copytree(made, tmp_path / "run")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_everything_it_brings_is_used_and_recorded(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    (task,) = manifest["tasks"]
    assert (task["name"], task["language"], task["protocol"]) == ("recipes", "python", "first-half")
    assert (task["source"], task["samples"]) == ("embedded: recipes", 3)
    for sample in lines(made / "samples.jsonl"):
        assert len(sample["reference_ids"]) == 6
        assert len(sample["token_ids"]) <= 6
        assert ";" not in sample["text"]
        has_brackets = set(sample["text"]) & set("()[]{}")
        assert sample["scores"]["balanced_brackets"] == 1 or has_brackets
        assert "edit_similarity" in sample["scores"]
        assert "vocabulary" not in sample["scores"]
    assert manifest["meter"]["source"] == "ten-watts"
    assert manifest["meter"]["measured"] is manifest["machine"]["meter_measured"] is False
    assert all(window["energy_j"] > 0 for window in lines(made / "windows.jsonl"))


def test_its_scores_end_in_the_summary_and_a_guess_of_energy_ranks_nothing(made: Path) -> None:
    summary = json.loads((made / "summary.json").read_text())
    assert all(0 <= row["metrics"]["balanced_brackets"]["value"] <= 1 for row in summary["rows"])
    assert all(row["metrics"]["vocabulary"]["value"] >= 1 for row in summary["rows"])
    report = (made / "report.md").read_text()
    assert "share of completions that close every bracket they open" in report
    assert "vocabulary" in report
    assert {(row["energy_source"], row["energy_measured"]) for row in summary["rows"]} == {("ten-watts", False)}
    (note,) = [note for note in summary["notes"] if "10 W times the time" in note]
    assert "an estimate, not a measurement" in note
    assert "measured energy" not in report
    assert not any("energy" in (row["verdict"] or "") for row in summary["rows"])


def test_the_run_says_which_package_everything_came_from(made: Path) -> None:
    plugins = json.loads((made / "manifest.json").read_text())["plugins"]
    assert {(plugin["distribution"], plugin["version"]) for plugin in plugins} == {("every-nth-exit", "1.0")}
    assert {plugin["name"] for plugin in plugins} == {*NAMES.values(), "vocabulary"} - {NAMES["metrics"]}


def test_a_run_does_not_go_on_with_other_code_of_one_version(
    run: Path, site: Path, forked: Shell, tmp_path: Path
) -> None:
    """A package that is worked on has many codes and one version."""
    went_on = forked("run", "--resume", run, cwd=run.parent, **seeing(site))
    assert went_on.returncode == 0, went_on.stderr
    changed = shutil.copytree(site, tmp_path / "changed")
    module = changed / "every_nth_exit.py"
    text = module.read_text()
    assert "% self.n == 0" in text
    module.write_text(text.replace("% self.n == 0", "% self.n != 0"))
    refused = forked("run", "--resume", run, cwd=run.parent, **seeing(changed))
    assert refused.returncode == 2
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert "was measured with other code: every-nth-exit was " in line
    assert line.endswith("restore that code, or start a new run with another --out.")
    before = json.loads((run / "manifest.json").read_text())
    assert {plugin["code"] for plugin in before["plugins"]} == {before["plugins"][0]["code"]} != {""}


def test_a_run_is_read_where_the_package_is_not_installed(run: Path, forked: Shell) -> None:
    ran = forked("report", run, "--json", cwd=run.parent)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    (note,) = [note for note in summary["notes"] if "not installed" in note]
    assert note.startswith("every-nth-exit==1.0 is not installed here (strategy 'every-nth', task 'recipes', protocol")
    assert note.endswith("Run `pip install every-nth-exit==1.0`.")
    before = json.loads((run / "summary.json").read_text())
    for now, then in zip(summary["rows"], before["rows"], strict=True):
        assert now["metrics"] == then["metrics"]  # those of completions together come from the summary of then


def test_its_metric_is_in_every_table_and_file(made: Path, site: Path, forked: Shell, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    printed = forked("report", run, cwd=tmp_path, **seeing(site))
    assert printed.returncode == 0, printed.stderr
    assert "tokens: mean number of tokens in a completion" in " ".join(printed.stdout.split())
    summary = json.loads((run / "summary.json").read_text())
    values = [row["metrics"]["completion_tokens"]["value"] for row in summary["rows"]]
    counts = [len(sample["token_ids"]) for sample in lines(run / "samples.jsonl")]
    assert sum(values) / 2 == pytest.approx(sum(counts) / len(counts))
    made_report = forked("report", run, "--out", "all", "--no-figures", cwd=tmp_path, **seeing(site))
    assert made_report.returncode == 0, made_report.stderr
    with (run / "summary.csv").open() as file:
        assert [float(row["completion_tokens"]) for row in csv.DictReader(file)] == values
    assert "| tokens |" in (run / "report.md").read_text()
    assert "& tokens \\\\" in (tmp_path / "all" / "tables.tex").read_text()


def test_its_metric_is_on_the_site(made: Path, site: Path, forked: Shell, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    published = forked("leaderboard", run, "--out", "site", cwd=tmp_path, **seeing(site))
    assert published.returncode == 0, published.stderr
    index = read_script(tmp_path / "site" / "data" / "index.js", "index")
    (metric,) = [metric for metric in index["metrics"] if metric["key"] == "completion_tokens"]
    assert (metric["header"], metric["unit"], metric["column"]) == ("tokens", "tokens", True)


def test_its_metric_is_a_condition(
    site: Path, forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    ran = forked(
        *("run", "--strategy", "fixed:layer=6", "--model", tiny_llama, "--source", rows_file, "--limit", 6),
        *("--max-new-tokens", 4, "--energy", "none", "--threads", 1, "--out", "run"),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    pair = ("compare", "run", "run", "--point-a", "full", "--point-b", "fixed:layer=6", "--fail-if")
    for condition, code in (("completion_tokens>-100", 1), ("completion_tokens>+100", 0)):
        compared = forked(*pair, condition, cwd=tmp_path, **seeing(site))
        assert compared.returncode == code, compared.stdout + compared.stderr
    assert forked(*pair, "completion_tokens>-100", cwd=tmp_path).returncode == 2  # nobody knows it without the package


def test_a_metric_that_fails_is_left_out_and_named(run: Path, plug_in: Callable[..., Path], forked: Shell) -> None:
    source = """
    from harness.contracts import Metric
    Outside = Metric(name="odd", header="odd", meaning="odd", of_sample=lambda sample: {}["x"])
    """
    ran = forked("report", run, "--json", cwd=run.parent, **seeing(plug_in("odd", source, METRICS)))
    assert ran.returncode == 0, ran.stderr
    said = "the metric 'odd' of outside-odd fails: KeyError: 'x'."
    assert f"not shown: {said}" in json.loads(ran.stdout)["notes"]
    assert f"warning: {said} It is left out" in ran.stderr


def test_what_cannot_go_on_without_the_package_is_refused(run: Path, forked: Shell) -> None:
    ran = forked("run", "--resume", run, cwd=run.parent)
    assert ran.returncode == 2
    assert "was measured with what is not installed here: strategy 'every-nth'" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("  pip install every-nth-exit==")
    ran = forked("run", "--protocol", "first-half", cwd=run.parent)
    assert ran.returncode == 2
    assert "unknown protocol 'first-half'" in ran.stderr
