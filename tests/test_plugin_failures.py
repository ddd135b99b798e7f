"""Whatever a plug-in of another project does wrong is its own, by name, and costs nothing that it did not make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.registry import METERS, METRICS, SCORES, STOPS, STRATEGIES, TASKS, Registry
from tests.conftest import Ran, snapshot

Command = Callable[..., Ran]
PlugIn = Callable[..., Path]


def strategy(body: str) -> str:
    return f"@dataclass(frozen=True)\nclass Outside(Strategy):\n    def should_exit(self, view):\n        {body}\n"


def score(body: str, *, method: str = "sample(self, completion)") -> str:
    sample = "" if method.startswith("sample") else "    def sample(self, completion): return 1.0\n"
    head = f"from harness.contracts import Score\nclass Outside(Score):\n    title = 'odd'\n{sample}"
    return f"{head}    def {method}:\n        {body}\n"


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------- strategies

NO_DEFECT_OF_OURS = "this is a defect of outside-odd (the strategy 'odd'), not of the harness"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("import sys; sys.exit(0)", 70, NO_DEFECT_OF_OURS),
        ("import os; os._exit(0)", 70, NO_DEFECT_OF_OURS),
        ("raise GeneratorExit", 70, NO_DEFECT_OF_OURS),
        ("raise type('Odd', (BaseException,), {})", 70, NO_DEFECT_OF_OURS),
        ("raise MemoryError", 70, NO_DEFECT_OF_OURS),
        ("open('/nowhere/at/all')", 70, NO_DEFECT_OF_OURS),
        ("return view.no_such_attribute", 70, NO_DEFECT_OF_OURS),
        ("return view.best_tokens('many')", 70, NO_DEFECT_OF_OURS),
        ("return self.should_exit(view)", 70, NO_DEFECT_OF_OURS),
        ("return torch.zeros(1, dtype=torch.bool, device='meta')", 2, "Outside.should_exit of outside-odd returned a "),
        ("view.answer_with(view.top_token, view.top_token)", 2, "of outside-odd: view.answer_with was given a "),
        ("view.logits_of(view.top_token)", 2, "Outside of outside-odd: view.logits_of was given a tensor of shape "),
        ("view.stop([True])", 2, "Outside of outside-odd: view.stop was given list at layer 4; give a tensor of 1 row"),
        ("view.once('odd', lambda: 0.5)", 2, "Outside of outside-odd: view.once was given float at layer 4; give a "),
    ],
)
def test_what_a_strategy_does_wrong_is_named_and_never_success(
    plug_in: PlugIn, tiny_run: Command, body: str, code: int, said: str
) -> None:
    plug_in("odd", strategy(body))
    ran = tiny_run("--strategy", "odd")
    assert ran.code == code, ran.err
    assert said in ran.err.splitlines()[-1]


def test_a_forked_process_of_a_plug_in_may_end_as_it_likes(plug_in: PlugIn, tiny_run: Command, tmp_path: Path) -> None:
    body = """
        import os
        if not (child := os.fork()):
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        return view.rows < 0"""
    plug_in("odd", strategy(body))
    ran = tiny_run("--strategy", "odd", "--out", "out")
    assert ran.code == 0, ran.err
    assert len(samples_of(tmp_path / "out")) == 6


def test_what_a_plug_in_prints_is_no_result(plug_in: PlugIn, tiny_run: Command, cli: Command) -> None:
    plug_in("odd", "print('at import')\n" + strategy("print('when asked')\n        return view.rows < 0"))
    ran = tiny_run("--strategy", "odd", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["rows"]
    assert "at import" in ran.err
    assert "when asked" in ran.err
    for asked in (("--version",), ("run", "--help"), ("list", "strategies")):
        said = cli(*asked)
        assert said.out
        assert not said.err


STOP_EXITS = """
import sys
from harness.contracts import Stop
@dataclass(frozen=True)
class Outside(Stop):
    def start(self, cursor):
        sys.exit(0)
"""
EXITS = "import sys\nclass Outside:\n    def __init__(self, **given):\n        sys.exit(0)\n"


@pytest.mark.parametrize(
    ("registry", "source", "arguments"),
    [
        (TASKS, EXITS, ("--task", "odd")),
        (METERS, EXITS, ("--energy", "odd")),
        (STRATEGIES, STOP_EXITS.replace("Stop", "Strategy").replace("start", "exit_points"), ("--strategy", "odd")),
        (STOPS, STOP_EXITS, ("--stop", "odd")),
    ],
)
def test_nobody_else_ends_a_run_with_success(
    plug_in: PlugIn, tiny_run: Command, registry: Registry[Any], source: str, arguments: tuple[str, str]
) -> None:
    plug_in("odd", source, registry)
    ran = tiny_run(*arguments)
    assert ran.code == 70, ran.err
    assert "RuntimeError: sys.exit(0) was called" in ran.err
    assert f"a defect of outside-odd (the {registry.noun} 'odd'), not of the harness" in ran.err.splitlines()[-1]


WRITES = """
        answer = view.position % 2 == 0
        for seen in (view, view.previous, view.part([0])):
            if seen is not None:
                for one in (seen.hidden_state, seen.exit_state, seen.logits, seen.position, seen.top_probability):
                    one.mul_(0)
                seen.token_ids[0].clear()
        return answer
"""


@pytest.mark.parametrize("point", ["odd@lossless", "odd", "odd:batch"])
def test_what_a_strategy_writes_into_its_view_changes_nothing(
    plug_in: PlugIn, tiny_run: Command, tmp_path: Path, point: str
) -> None:
    plug_in("odd", strategy(WRITES.strip()))
    plug_in("fair", strategy("return view.position % 2 == 0"))
    name, _, batch = point.partition(":")
    both = ("--strategy", name, "--strategy", name.replace("odd", "fair"))
    ran = tiny_run(*both, "--out", "out", *(("--batch-size", 3) if batch else ()))
    assert ran.code == 0, ran.err
    made: dict[str, list[Any]] = {}
    for sample in samples_of(tmp_path / "out"):
        kept = [sample[key] for key in ("sample_id", "token_ids", "exit_layers", "prompt_ids")]
        made.setdefault(sample["operating_point"], []).append(kept)
    assert made[name] == made[name.replace("odd", "fair")]
    if "lossless" in name:
        assert [one[:2] for one in made[name]] == [one[:2] for one in made["full"]]


@pytest.mark.parametrize(
    "source",
    [
        strategy("import os; os.chdir('/')\n        return view.rows < 0"),
        "import os; os.chdir('/')\n" + strategy("..."),
    ],
)
def test_another_working_folder_sends_no_records_elsewhere(
    plug_in: PlugIn, tiny_run: Command, caplog: pytest.LogCaptureFixture, rows_file: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(rows_file.read_bytes())
    plug_in("odd", source.replace("...", "return view.rows < 0"))
    ran = tiny_run("--strategy", "odd", "--source", "rows.jsonl", "--out", "out")
    assert ran.code == 0, ran.err
    assert len(samples_of(tmp_path / "out")) == 6
    assert (tmp_path / "out" / "summary.json").exists()
    assert "the working folder was changed to / while " in caplog.text


# --------------------------------------------------------------- rows that lost their samples


def test_a_row_without_samples_is_named_with_the_reason(
    plug_in: PlugIn, tiny_run: Command, cli: Command, tmp_path: Path
) -> None:
    body = "if view.rows.numel(): raise ModelError('the oven is cold')"
    plug_in("odd", "from harness.errors import ModelError\n" + strategy(body))
    ran = tiny_run("--strategy", "odd", "--strategy", "fixed:layer=4", "--out", "out")
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["n"], row["errors"]) for row in summary["rows"]] == [(3, 0), (0, 3), (3, 0)]
    (note,) = [note for note in summary["notes"] if " lost " in note]
    assert note == "odd on py150 lost 3 of 3 samples, the first with: the oven is cold."
    assert " ".join(note.split()) in " ".join(cli("report", "out").out.split())


def test_a_run_that_measured_nothing_does_not_end_with_success(
    plug_in: PlugIn, tiny_run: Command, tmp_path: Path
) -> None:
    source = """
        from tasks.py150 import Py150
        class Outside(Py150):
            name = "odd"
            def stop_rule(self, protocol, tokenizer):
                return lambda token_ids: 1 / 0
        """
    plug_in("odd", source, TASKS)
    ran = tiny_run("--task", "odd", "--out", "out")
    assert ran.code == 2
    assert "failed on every sample" in ran.err.splitlines()[-1]
    assert {sample["error"] for sample in samples_of(tmp_path / "out")} == {
        "cannot say whether it has ended: ZeroDivisionError: division by zero."
    }


# --------------------------------------------------------------- what nobody asked for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("registry", "source"),
    [
        (SCORES, "import sys; sys.exit(0)"),
        (SCORES, score("1 / 0", method="__init__(self)")),
        (SCORES, score("1 / 0", method="applies_to(self, language)")),
        (METRICS, "Outside = 5"),
        (STRATEGIES, "1 / 0"),
    ],
)
def test_one_that_nobody_asked_for_stops_nothing(
    plug_in: PlugIn,
    tiny_run: Command,
    cli: Command,
    caplog: pytest.LogCaptureFixture,
    registry: Registry[Any],
    source: str,
) -> None:
    plug_in("odd", source, registry)
    ran = tiny_run("--out", "out")
    assert ran.code == 0, ran.err
    (warned,) = [one for one in caplog.messages if "It is left out: mend or uninstall that package" in one] or [""]
    assert warned.startswith(f"the {registry.noun} 'odd' of outside-odd ") == (registry is not STRATEGIES)
    assert cli("report", "out").code == 0
    assert "odd" in cli("list").out


# ------------------------------------------------------------------------------ scores that fail

MENDED = (
    "if mended := os.environ.get('MENDED'): return None if mended == 'undefined' else 1 / (1 + len(completion.text))"
)


@pytest.fixture
def failed(plug_in: PlugIn, tiny_run: Command, tmp_path: Path) -> Path:
    """A run with a score of a package that fails on every completion until ``MENDED`` is in the environment."""
    plug_in("odd", "import os\n" + score(f"{MENDED}\n        1 / 0"), SCORES)
    ran = tiny_run("--strategy", "fixed:layer=6", "--out", "out")
    assert ran.code == 70, ran.err
    why = "the score 'odd' of outside-odd fails: ZeroDivisionError: division by zero"
    assert ran.err.splitlines()[-1] == (
        f"warning: {why}. Its values are missing, all else is kept; when it is mended, `harness rescore out` "
        "computes them"
    )
    for sample in samples_of(tmp_path / "out"):
        assert sample["error"] is None
        assert len(sample["token_ids"]) == len(sample["token_times_s"]) == 4
        assert sample["scores"]["odd"] is None
        assert sample["score_failures"] == {"odd": why}
        assert sample["scores"]["edit_similarity"] is not None
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["score_failures"] == {"odd": why}
    assert f"not shown: {why}." in summary["notes"]
    assert not any("Check the weights" in note for note in summary["notes"])
    return tmp_path / "out"


def test_a_mended_score_is_computed_of_what_was_recorded(
    failed: Path, cli: Command, tiny_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(failed)
    still = cli("rescore", "out", "--score", "odd")
    assert (still.code, still.out) == (70, "1 score(s): 0 values computed, 0 changed, 6 missing\n")
    monkeypatch.setenv("MENDED", "1")
    with monkeypatch.context() as killed:
        killed.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli("rescore", "out").code == 130
    assert snapshot(failed).keys() - before.keys() == {str(failed / "scores.json")}
    done = cli("rescore", "out")
    assert done.code == 0, done.err
    assert ", 6 changed, 0 missing\n" in done.out
    after = snapshot(failed)
    for name in ("manifest.json", "samples.jsonl", "windows.jsonl"):
        assert after[str(failed / name)] == before[str(failed / name)]
    assert ", 0 changed, 0 missing\n" in cli("rescore", "out").out

    from harness.running.reading import read_run

    run = read_run(failed)
    texts = [1 / (1 + len(sample.text)) for sample in run.samples]
    assert [sample.scores["odd"] for sample in run.samples] == texts
    assert run.summary.score_failures == {}
    assert run.summary == read_run(failed, stored=True).summary
    (note,) = [note for note in run.summary.notes if "computed again" in note]
    assert "outside-odd 1.0" in note
    assert "summary.json is what the records give" in cli("submit", "out").out
    resumed = cli("run", "--resume", "out")  # measures nothing, and takes the scores as they stand
    assert resumed.code == 0, resumed.err
    assert after[str(failed / "samples.jsonl")] == (failed / "samples.jsonl").read_bytes()


def test_a_score_that_fails_later_takes_no_value_away(
    failed: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as mended:
        mended.setenv("MENDED", "1")
        assert cli("rescore", "out").code == 0
    ran = cli("rescore", "out")
    assert ran.code == 70
    assert ran.out.endswith(", 0 changed, 0 missing\n")
    assert "the score 'odd' of outside-odd fails" in ran.err
    monkeypatch.setenv("MENDED", "undefined")
    assert cli("rescore", "out", "--score", "odd").out == "1 score(s): 0 values computed, 6 changed, 0 missing\n"
