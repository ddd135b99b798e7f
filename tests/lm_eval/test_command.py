"""``harness lm-eval``: a run that reports read, lm-eval's results beside it, and one line for what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records import Manifest
from tests.lm_eval.conftest import KINDS

Command = Callable[..., Any]
EXIT = "fixed:layer=4"


@pytest.fixture
def lm_eval(cli: Command, tiny_llama: Path, task_folder: Path) -> Command:
    """``harness lm-eval`` on the tiny model and our tasks; further arguments win."""

    def run(*arguments: object) -> Any:
        given = ("lm-eval", "--model", tiny_llama, "--include-path", task_folder, "--energy", "estimate")
        return cli(*given, "--threads", 1, *arguments)

    return run


@pytest.mark.slow
def test_the_results_of_every_operating_point_and_a_run_that_reports_read(
    lm_eval: Command, cli: Command, hf: dict[str, Any]
) -> None:
    named = ("--tasks", "ours_line,ours_choice", "--strategy", EXIT, "--strategy", f"{EXIT}@lossless")
    ran = lm_eval(*named, "--batch-size", 3, "--out", "out")
    assert ran.code == 0, ran.err
    for word in (
        "ours_line",
        "exact_match",
        "acc_norm",
        EXIT,
        "full depth",
        "Energy: estimate, not measured by a sensor",
    ):
        assert word in ran.out
    assert "ours_line: exact_match" in ran.out
    assert f"\n  {EXIT} " in ran.out  # a row of its own, below
    assert "not a git repository" not in ran.err

    full, early, drafted = (
        json.loads(Path("out/lm-eval", point, "results.json").read_text())
        for point in ("full", EXIT, f"{EXIT}@lossless")
    )
    assert drafted["config"]["early_exit"]["decode"] == "lossless"
    assert drafted["results"] == full["results"]
    for task in ("ours_line", "ours_choice"):
        for name, value in hf["results"][task].items():
            if isinstance(value, float):
                assert full["results"][task][name] == pytest.approx(value, rel=1e-5)
    generated = {
        name: found["config"]["early_exit"]["tasks"]["ours_line"]["generated"]
        for name, found in {"full": full, "early": early}.items()
    }
    assert generated["full"]["exit_layer_mean"] == 12
    assert generated["early"]["exit_layer_mean"] == 4
    for facts in generated.values():
        assert facts["energy_source"] == "estimate"
        assert not facts["energy_measured"]
        assert facts["j_per_token"] > 0 < facts["s_per_token"]
    # what is only scored is scored once, at full depth, whatever the strategy
    assert early["results"]["ours_choice"] == full["results"]["ours_choice"]
    scored = early["config"]["early_exit"]
    assert scored["loglikelihood_at"] == "full depth"
    assert scored["tasks"]["ours_choice"]["scored"]["exit_layer_mean"] == 12
    assert scored["tasks"]["ours_choice"]["scored"]["requests"] == 21

    manifest = Manifest.model_validate_json(Path("out/manifest.json").read_text())
    assert [task.name for task in manifest.tasks] == ["ours_line"]
    samples = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    mean = sum(sample["scores"]["lm_eval_exact_match"] for sample in samples if sample["operating_point"] == EXIT) / 7
    assert early["results"]["ours_line"]["exact_match,none"] == pytest.approx(mean)

    report = cli("report", "out")
    assert report.code == 0, report.err
    assert EXIT in report.out
    assert "not installed" not in report.out + report.err
    assert "lm_eval_exact_match" in Path("out/summary.csv").read_text()


def test_scored_texts_alone_make_no_run_and_their_results_say_what_it_took(
    lm_eval: Command, cli: Command, caplog: pytest.LogCaptureFixture
) -> None:
    ran = lm_eval("--tasks", "ours_choice", "--strategy", EXIT, "--loglikelihood-exit", 4, "--out", "out")
    assert ran.code == 0, ran.err
    assert "nothing for a strategy to decide: fixed:layer=4 is left out" in caplog.text
    assert "there is no run for `harness report`" in ran.err
    assert "exit after layer 4" in ran.out
    assert [str(path) for path in Path("out").rglob("*") if path.is_file()] == ["out/lm-eval/full/results.json"]
    said = json.loads(Path("out/lm-eval/full/results.json").read_text())["config"]["early_exit"]
    assert (said["loglikelihood_layer"], said["device"], said["threads"]) == (4, "cpu", 1)
    scored = said["tasks"]["ours_choice"]["scored"]
    assert (scored["requests"], scored["exit_layer_mean"]) == (21, 4)
    assert scored["s_per_token"] > 0 < scored["j_per_token"]
    assert (scored["energy_source"], scored["energy_measured"]) == ("estimate", False)
    assert "it is not a run directory" in cli("report", "out").error


@pytest.mark.slow
def test_groups_and_tasks_whose_texts_another_one_had_are_scored_ones_too(
    lm_eval: Command, write_task: Callable[[str, str], Path], task_folder: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(task_folder, tmp_path / "own")
    for name, body in {"twin": KINDS["choice"], "part": KINDS["choice"].replace("'x'", "'y'")}.items():
        shutil.copy(write_task(f"ours_{name}", body), own)
    metrics = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (own / "group.yaml").write_text(f"group: ours_group\ntask: [ours_choice, ours_twin]\n{metrics}")
    tasks = "ours_line,ours_group,ours_part"
    asked = ("--include-path", own, "--strategy", EXIT, "--loglikelihood-exit", 10, "--limit", 2, "--out", "out")
    ran = lm_eval("--tasks", tasks, *asked)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    for task in ("choice", "twin", "part", "group"):
        below = lines[lines.index(next(line for line in lines if line == f"ours_{task}: acc")) + 1 :]
        assert below[0].startswith("  exit after layer 10 ")
        assert not below[1].startswith("  ")  # one row for all operating points
    assert "Texts that another task had scored were not read again" in ran.out
    for point in ("full", EXIT):
        said = json.loads(Path("out/lm-eval", point, "results.json").read_text())["config"]["early_exit"]["tasks"]
        facts = {task: said[f"ours_{task}"]["scored"] for task in ("choice", "twin", "part")}
        assert {task: each["requests"] for task, each in facts.items()} == {"choice": 6, "twin": 6, "part": 6}
        assert {task: each["known_requests"] for task, each in facts.items()} == {"choice": 0, "twin": 6, "part": 4}
        assert facts["twin"]["tokens"] == facts["twin"]["known_tokens"] == facts["choice"]["tokens"]
        assert {each["exit_layer_mean"] for each in facts.values()} == {10}
        assert (facts["twin"]["s_per_token"], facts["twin"]["j_per_token"]) == (None, None)
        assert facts["twin"]["energy_reason"] == "scored for another task"
        assert facts["part"]["s_per_token"] > 0 < facts["part"]["j_per_token"]


@pytest.mark.slow
def test_what_a_task_has_scored_is_one_window(lm_eval: Command) -> None:
    """So that a sensor that ticks slowly sees it; the recording ends with that window's second edge."""
    recording = {"period_s": 1e-6, "readings": [{"package-0": 2.0}, {"package-0": 7.0}]}
    Path("recording.json").write_text(json.dumps(recording))
    ran = lm_eval("--tasks", "ours_choice", "--energy", "replay:recording.json", "--batch-size", 2, "--out", "out")
    assert ran.code == 0, ran.err
    facts = json.loads(Path("out/lm-eval/full/results.json").read_text())["config"]["early_exit"]["tasks"]
    scored = facts["ours_choice"]["scored"]
    assert scored["j_per_token"] * scored["tokens"] == pytest.approx(5)
    assert (scored["energy_flags"], scored["energy_reason"]) == ([], None)


SAMPLING = """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["x"], do_sample: true, temperature: 0.7}
metric_list: [{metric: exact_match}]
"""
GENERATING = SAMPLING.replace("do_sample: true, temperature: 0.7", "max_gen_toks: 4")
REFUSED = {
    "sampling": (SAMPLING, "the task sampling samples (do_sample or a temperature above 0)"),
    "beams": (GENERATING.replace("4}", "4, num_beams: 3}"), "the task beams sets num_beams in its generation_kwargs"),
    "repeats": (
        GENERATING.replace("4}", "4, no_repeat_ngram_size: 1}"),
        "the task repeats sets no_repeat_ngram_size in its generation_kwargs",
    ),
    "endless": (GENERATING.replace("4}", "256}"), "asks for 256 new tokens"),
    "foreign": (GENERATING.replace("exact_match", "their_metric"), "which lm-eval would fetch from the hub and run"),
    "unsafe": (GENERATING + "unsafe_code: true\n", "runs code that the model wrote"),
    "pictures": (GENERATING + 'doc_to_image: ["{{prompt}}"]\n', "reads pictures or sounds"),
}


def test_what_cannot_be_right_is_refused(
    lm_eval: Command, write_task: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    for name, (body, words) in REFUSED.items():
        ran = lm_eval("--tasks", write_task(name, body), "--out", "out")
        assert ran.code == 2, ran.err
        assert words in " ".join(ran.err.split())
        assert ran.err.count("error:") == 1
        assert not Path("out", "manifest.json").exists()
    line = lm_eval("--tasks", "ours_choice", "--loglikelihood-exit", 5).error
    assert "has no exit there. Known: 4, 6, 10; 12 is full depth." in line
    assert "there is no such folder" in lm_eval("--tasks", "ours_line", "--include-path", "nowhere").error
    asked: list[bool] = []

    def some(include_path: str | None, *, include_defaults: bool = True) -> TaskManager:
        asked.append(include_defaults)  # lm-eval's own are thousands of names to read
        return TaskManager(include_path=include_path, include_defaults=False)

    with monkeypatch.context() as patch:
        patch.setattr("lm_eval.tasks.TaskManager", some)
        assert "unknown lm-eval task 'ours_lime'. Did you mean 'ours_line'?" in lm_eval("--tasks", "ours_lime").error
    assert asked == [False, True]
    with monkeypatch.context() as patch:
        patch.setattr("datasets.__version__", "3.6.0")
        ran = lm_eval("--tasks", "ours_line")
    assert "datasets 3.6.0 runs programs that come with data sets" in ran.error
    assert ran.commands == ["pip install 'datasets>=4'"]
    monkeypatch.setattr("harness.lm_eval.evaluate.find_tasks", None)  # before a task is read
    line = lm_eval("--tasks", "ours_line", "--apply-chat-template").error
    assert "has no default chat template. Omit --apply-chat-template" in line


@pytest.mark.slow
def test_prompts_that_exit_are_a_row_beside_full_depth(lm_eval: Command, prompt_maps: Path) -> None:
    asked = ("--tasks", "ours_long", "--limit", 2, "--artefacts", prompt_maps, "--prompt-exit", "layer=4:tail=4")
    ran = lm_eval(*asked, "--out", "out")
    assert ran.code == 0, ran.err
    written, skipped = "tail:layer=4:tail=4", {}
    for line in Path("out/samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        skipped.setdefault(sample["operating_point"], set()).add(sample["prompt_layers_skipped"] > 0)
    assert skipped == {"full": {False}, f"full@prompt={written}": {True}}
    found = json.loads(Path(f"out/lm-eval/full@prompt={written}/results.json").read_text())
    assert found["config"]["early_exit"]["prompt_exit"] == written
    assert "lossless decoding yields full depth's tokens" in lm_eval(*asked, "--strategy", f"{EXIT}@lossless").err


@pytest.mark.slow
def test_the_run_records_what_lm_eval_made_the_prompts_with(
    lm_eval: Command, write_task: Callable[[str, str], Path], tiny_llama: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    bodies = {"none": GENERATING, "one": f"{GENERATING}num_fewshot: 1\n", "zero": f"{GENERATING}num_fewshot: 0\n"}
    files = [str(write_task(f"{name}_of_its_own", body)) for name, body in bodies.items()]
    asked = ("--num-fewshot", 2, "--apply-chat-template")
    ran = lm_eval("--model", model, "--tasks", ",".join(files), "--limit", 1, *asked, "--out", "out")
    assert ran.code == 0, ran.err
    wanted = {f"{name}_of_its_own": count for name, count in {"none": 2, "one": 2, "zero": 0}.items()}
    assert json.loads(Path("out/lm-eval/full/results.json").read_text())["n-shot"] == wanted
    tasks = Manifest.model_validate_json(Path("out/manifest.json").read_text()).tasks
    assert {task.name: int(task.detail["num_fewshot"]) for task in tasks} == wanted
    assert {task.detail["apply_chat_template"] for task in tasks} == {"True"}


FUNCTIONS = """\
def text(doc):
    return doc["prompt" if len(doc["prompt"]) < 50 else "absent"]


def judge(doc, results):
    raise ArithmeticError("nothing suits")


def total(values):
    raise ArithmeticError("no sum")
"""
FAILING = {
    "text": ("doc_to_text: !function own.text\n", "KeyError: 'absent'", 2),
    "results": ("process_results: !function own.judge\n", "ArithmeticError: nothing suits", 6),
    "total": (
        "metric_list:\n  - metric: acc\n    aggregation: !function own.total\n    higher_is_better: true\n",
        "ArithmeticError: no sum",
        10,
    ),
}


def test_what_a_tasks_own_function_raises_is_one_line(lm_eval: Command, write_task: Callable[[str, str], Path]) -> None:
    for name, (lines, words, number) in FAILING.items():
        file = write_task(f"failing_{name}", KINDS["choice"] + lines)
        (file.parent / "own.py").write_text(FUNCTIONS)
        ran = lm_eval("--tasks", file)
        assert ran.code == 2, ran.err
        assert f"lm-eval cannot evaluate {file}: {words} ({file.parent / 'own.py'}, line {number})" in ran.err
        assert ran.err.count("error:") == 1
        assert "Traceback" not in ran.err


def test_what_the_model_raises_stays_a_defect_of_ours(lm_eval: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ArithmeticError("ours")

    monkeypatch.setattr("harness.lm_eval.model.log_likelihoods", broken)
    ran = lm_eval("--tasks", "ours_choice")
    assert ran.code == 70
    assert "ArithmeticError: ours" in ran.err
    assert "this is a defect of the harness" in ran.err
