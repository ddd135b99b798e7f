"""What a user can get wrong ends in one clear line and exit code 2, and nothing is written or lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refused = Callable[..., str]


# --------------------------------------------------------------- names, ranges, what cannot be read

DIGITS = "1" * 400
REFUSED: list[tuple[str, ...]] = [
    # flag, value, what the line holds
    ("--strategy", "confidense", "unknown strategy 'confidense'", "Did you mean 'confidence'?"),
    ("--task", "py15", "unknown task 'py15'", "Did you mean 'py150'?"),
    ("--model", "smollm2-135", "unknown model 'smollm2-135'", "Did you mean 'smollm2-135m'?"),
    ("--energy", "rappl", "unknown meter 'rappl'", "Did you mean 'rapl'?"),
    ("--strategy", "confidence:treshold=0.5", "no option 'treshold'", "Did you mean 'threshold'?"),
    ("--protocol", "green-cod", "'green-cod'", "'green-code'"),
    ("--kv", "propagat", "'propagat'", "'propagate'"),
    ("--weights", "rand", "'rand'", "'random'"),
    ("--source", "embeded", "'embeded'", "Did you mean 'embedded'?"),
    ("--device", "cuda:99", "cuda:99"),
    ("--device", "abacus", "unknown to torch"),
    *((flag, "", "''") for flag in ("--model", "--source", "--task", "--energy")),
    ("--tdp-w", "-5", "--tdp-w -5"),
    ("--idle-s", "nan", "--idle-s nan"),
    ("--arrival-rate", "1e-300", "--arrival-rate 1e-300"),  # the next request would come after the universe
    ("--arrival-rate", "nan", "--arrival-rate nan"),
    ("--limit", DIGITS, "--limit 1111"),
    ("--block-size", DIGITS, "--block-size 1111"),
    *(
        ("--strategy", text, text)
        for text in ("confidence:threshold=1.5", "confidence:threshold=nan", "patience:patience=0")
    ),
    *(("--strategy", text, "") for text in ("", " ", ":", "confidence:threshold", "confidence:=1", "confidence:,")),
    ("--strategy", "[bold]oops[/bold]\nand more", "[bold]oops[/bold] and more"),  # markup and line breaks: one line
    ("--strategy", "confidence:star:", ":star:"),
    ("--strategy", "fixed:layer=5", "not an exit point", "4, 6, 10", "--exit-points all"),
    ("--strategy", "fixed:layer=12", "last layer"),
    ("--strategy", "fixed:layer=13", "beyond"),
    ("--strategy", "fixed:layer=0", "greater than or equal to 1"),
    *(("--exit-points", points, "--exit-points") for points in ("0,4", "4,12", "4;6", "", "papr")),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[1][:24]!r}")
def test_what_a_run_refuses(refused: Refused, case: tuple[str, ...]) -> None:
    line = refused(*case[:2])
    assert [words for words in case[2:] if words not in line] == []


def test_what_other_commands_refuse(cli: Command) -> None:
    for arguments, expected in (
        (["list", "strategie"], "Did you mean 'strategies'?"),
        (["show", "confidense"], "Did you mean 'confidence'?"),
        (["show"], "NAME"),
        (["report"], "RUN_DIR"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "a" * 300], "File name too long"),
        (["run", "surplus"], "surplus"),
        (["run", "--stop", "line", "--attribute"], "Omit --stop"),
    ):
        assert expected in cli(*arguments).error


def test_no_name_and_no_path_holds_what_is_no_text(cli: Command, refused: Refused, tmp_path: Path) -> None:
    for flag in ("--out", "--model", "--artefacts", "--source", "--task", "--strategy", "--energy"):
        assert r"\udcff" in refused(flag, "caf\udcff")  # how a byte arrives that is not UTF-8
    for command in (
        *(["report", "a\0b"], ["compare", "a\0b", "c"], ["leaderboard", "a", "--out", "a\0b"], ["submit", "a\0b"]),
        *(["run", "--resume", "a\0b"], ["serve", "--api-key-file", "a\0b"], ["sweep", "--replay", "a\0b"]),
    ):
        assert "NUL" in cli(*command).error
    (tmp_path / "run.toml").write_text('tasks = ["a\\u0000b"]\n')
    assert "NUL" in cli("run", "--config", "run.toml").error


# -------------------------------------------------------------------------------------- hub


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("model", ["nobody/no-such-model", "opt-125m"])
def test_a_model_out_of_reach(refused: Refused, model: str) -> None:
    line = refused("--model", model)
    assert model in line
    assert "--weights random" in line
    assert "--model FOLDER" in line


def test_a_dataset_out_of_reach(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody answers
    line = refused("--source", "hub")
    assert "cannot reach the hub" in line
    assert "--source PATH" in line
    assert "--source embedded" in line


# ------------------------------------------------------------------------------------ models


def test_weights_of_another_shape(refused: Refused, make_model: Callable[..., Path]) -> None:
    folder = make_model("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    assert "have another shape in model.layers.0.mlp" in refused("--model", folder)


def test_weights_that_are_pickled_or_not_all_there(refused: Refused, make_model: Callable[..., Path]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = make_model("llama")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "safetensors" in refused("--model", folder)
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "model.layers.3.mlp.up_proj.weight" in refused("--model", folder)


def test_a_tokenizer_larger_than_the_vocabulary(refused: Refused, make_model: Callable[..., Path]) -> None:
    assert "embeds only 100" in refused("--model", make_model("llama", vocab_size=100))


# -------------------------------------------------------------------------------------- data


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to a JSONL file; what is no string is made JSON."""

    def write(*rows: object, newline: str = "\n", mark: str = "") -> Path:
        file = tmp_path / "given.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_bytes((mark + newline.join(lines) + newline).encode())
        return file

    return write


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_malformed_rows_are_counted_and_the_run_goes_on(
    tiny_run: Command, tmp_path: Path, documents: list[str], write_rows: Callable[..., Path]
) -> None:
    file = write_rows(
        {"id": 1, "code": documents[0]}, "{broken", {"id": 3, "cod": "x"}, {"id": 4, "code": documents[1]}
    )
    ran = tiny_run("--source", file, "--limit", 0, "--out", "out", "--repeats", 2, "--json")
    assert ran.code == 0, ran.err
    row = json.loads(ran.out)["rows"][0]
    assert (row["n"], row["errors"]) == (2, 2)
    failed = [record for record in records(tmp_path / "out") if record["error"]]
    assert {record["sample_id"] for record in failed} == {"row-2", "3"}
    assert {record["repeat"] for record in failed} == {0, 1}
    said = {record["error"].partition(":")[0] for record in failed}
    assert said == {"row 2", "row 3"}


def test_many_malformed_rows_do_not_flood_the_screen(
    tiny_run: Command, documents: list[str], write_rows: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = write_rows({"id": 1, "code": documents[0]}, *["{broken"] * 40)
    ran = tiny_run("--source", file, "--limit", 0, "--json")
    assert json.loads(ran.out)["rows"][0]["errors"] == 40
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 6
    assert warnings[-1] == "py150: 35 further rows cannot be used"


def test_a_file_of_malformed_rows_only(refused: Refused, write_rows: Callable[..., Path]) -> None:
    line = refused("--source", write_rows("{broken", "[1]"))
    assert "none of its 2 rows can be used" in line
    assert "row " in line


def test_empty_ground_truth(refused: Refused, write_rows: Callable[..., Path]) -> None:
    file = write_rows(*({"id": n, "input": "<s> import os <EOL> def f ( ) :", "gt": ""} for n in range(3)))
    line = refused("--source", file, "--protocol", "codexglue-line")
    assert "'gt'" in line
    assert "withheld" in line
    assert "--source embedded" in line


def test_a_prompt_longer_than_the_models_positions(
    tiny_run: Command, refused: Refused, documents: list[str], write_rows: Callable[..., Path]
) -> None:
    long = {"id": "long", "input": " ".join(documents), "gt": "x"}
    short = {"id": "short", "input": "def f(a):\n    return", "gt": "a"}
    arguments = ["--protocol", "codexglue-line", "--limit", 0]
    assert "256 positions" in refused(*arguments, "--source", write_rows(long))

    ran = tiny_run(*arguments, "--source", write_rows(long, short), "--out", "out", "--json")
    assert ran.code == 0, ran.err
    row = json.loads(ran.out)["rows"][0]
    assert (row["n"], row["errors"]) == (1, 1)
    (error,) = {record["error"] for record in records(Path("out")) if record["error"]}
    assert error.startswith("row 1: the prompt has ")


@pytest.mark.slow
@pytest.mark.parametrize(("newline", "mark"), [("\r\n", ""), ("\n", "\ufeff"), ("\n\n \n", ""), ("\r\n\r\n", "\ufeff")])
def test_files_from_other_systems_are_read(
    tiny_run: Command, documents: list[str], write_rows: Callable[..., Path], newline: str, mark: str
) -> None:
    file = write_rows(*({"id": n, "code": text} for n, text in enumerate(documents)), newline=newline, mark=mark)
    ran = tiny_run("--source", file, "--limit", 0, "--json")
    assert ran.code == 0, ran.err
    row = json.loads(ran.out)["rows"][0]
    assert (row["n"], row["errors"]) == (len(documents), 0)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{\x00}\x00"])
def test_files_that_hold_no_rows(refused: Refused, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.jsonl").write_bytes(content)
    assert "odd.jsonl" in refused("--source", tmp_path / "odd.jsonl")


# ------------------------------------------------------------------------------------ energy


def test_no_sensor_for_rapl(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.metering.sensors.POWERCAP", (tmp_path / "no-such-counters",))
    line = refused("--energy", "rapl")
    assert "--energy rapl cannot measure here" in line
    assert "modprobe" in line  # how to enable it
    assert "--energy estimate" in line


# ----------------------------------------------------------------------------- configuration


def test_a_configuration_file(cli: Command, tmp_path: Path) -> None:
    for content, named in (
        (b"limit = = 3", "it is not TOML ("),
        (b"strategy = ['full']", "Did you mean 'strategies'?"),
        (b"[run]\nlimit = 3", "'run'"),
        (b"limit = 'three'", "limit = 'three'"),
        (b"strategies = 'full'", "strategies = 'full'"),
        (b"tasks = []", "tasks"),
    ):
        (tmp_path / "run.toml").write_bytes(content)
        assert named in cli("run", "--config", "run.toml").error
        assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
    assert "nowhere.toml" in cli("run", "--config", "nowhere.toml").error
    assert "it is a folder, not a file" in cli("run", "--config", ".").error


# ----------------------------------------------------------------------------- run directory


def test_a_path_that_python_cannot_make_is_refused_wherever_it_is_given(
    cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = "d/" * 1200 + "x"
    (tmp_path / "run.toml").write_text(f'out = "{deep}"\n')
    commands: list[tuple[str, ...]] = [
        ("run", "--out", deep), ("run", "--config", "run.toml"), ("study", "quick", "--out", deep),
        ("leaderboard", ".", "--out", deep), ("report", ".", "--out", deep), ("export", deep),
        ("train", "shortlist", "--out", deep), ("submit", ".", f"--out={deep}"),
    ]  # fmt: skip
    for command in commands:
        assert "more than 200 folders inside one another" in cli(*command).error
    monkeypatch.setenv("XDG_CACHE_HOME", deep)
    assert "more than 200 folders inside one another" in cli("cache", "list").error


def test_out_that_cannot_be_used(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for out in ("file", "file/below", "loop"):
        assert "is no folder" in refused("--out", out)
    line = refused("--out", "full")
    assert "not empty" in line
    assert "--resume full" in line


@pytest.mark.parametrize("out", [[], ["--out", "out"], ["--out", "deep/down/out"]])
def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, out: list[str]
) -> None:
    def too_late(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr("harness.models.model.ResolvedModel.load", too_late)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    line = refused(*out)
    assert "not writable" in line
    assert "--out" in line


@pytest.fixture
def finished(tiny_run: Command, tmp_path: Path) -> Path:
    """A finished run, in ``out``."""
    assert tiny_run("--out", "out").code == 0
    return tmp_path / "out"


def test_a_damaged_run_directory_is_named_and_left_as_it_is(cli: Command, finished: Path) -> None:
    """What is damaged is told apart in ``tests/store``."""
    for file, content, said in (
        ("samples.jsonl", "null\n" * 9, "damaged"),
        ("manifest.json", '{"schema_version": 99}', "schema version 99"),
        ("manifest.json", None, "not a run directory"),
    ):
        if content is None:
            (finished / file).unlink()
        else:
            (finished / file).write_text(content)
        before = {path.name: path.read_bytes() for path in finished.iterdir()}
        for command in (["run", "--resume"], ["report"]):
            line = cli(*command, finished).error
            assert said in line
            assert "out" in line
        assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_resuming_a_folder_of_something_else(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    line = cli("run", "--resume", "mine").error
    assert line.endswith("it is not a run directory. Give the folder that `harness run` made.")
    (tmp_path / "mine" / "one").mkdir()
    (tmp_path / "mine" / "one" / "manifest.json").write_text("{}")
    assert cli("run", "--resume", "mine").error.endswith("it is not a run directory. Give one such as mine/one.")
    assert "does not exist" in cli("run", "--resume", "nowhere").error


def test_resuming_with_another_configuration(cli: Command, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    for flag, value, said in (
        ("--kv", "skip", 'config.kv was "auto", now "skip"'),
        ("--limit", "2", "config.limit was 3, now 2"),
        ("--strategy", "oracle", 'config.strategies[0] was "full", now "oracle"'),
    ):
        assert said in cli("run", "--resume", finished, flag, value).error
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_out_and_resume_that_contradict_each_other(cli: Command, finished: Path) -> None:
    line = cli("run", "--resume", finished, "--out", "elsewhere").error
    assert "name two directories" in line
    assert not Path("elsewhere").exists()


# ------------------------------------------------------------------------------------ memory


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let decoding fail as it does when memory is full, from the ``after``-th batch on."""
    import torch

    from harness.decoding.engine import Engine

    decode, calls = Engine.decode, iter(range(10**9))

    def failing(self: Engine, *arguments: Any, **keywords: Any) -> Any:
        if next(calls) >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(self, *arguments, **keywords)

    monkeypatch.setattr(Engine, "decode", failing)


@pytest.mark.slow
def test_out_of_memory_keeps_the_records_and_can_be_resumed(tiny_run: Command, cli: Command, tmp_path: Path) -> None:
    arguments = ["--strategy", "fixed:layer=4,6"]
    assert tiny_run(*arguments, "--out", "whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.metering.counters.WARMUP_DRIFT", -1.0)  # never settled, so 10 of them are warm-up
        run_out_of_memory(patch, after=14)
        line = tiny_run(*arguments, "--out", "out").error
    assert "out of memory" in line
    assert "--batch-size" in line
    assert "--resume" in line
    kept = records(tmp_path / "out")
    assert 0 < len(kept) < 9

    assert cli("run", "--resume", "out").code == 0
    after, whole = records(tmp_path / "out"), records(tmp_path / "whole")
    assert after[: len(kept)] == kept

    def content(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["operating_point"], record["sample_id"], record["token_ids"], record["exit_layers"]

    assert [content(record) for record in after] == [content(record) for record in whole]


def test_out_of_memory_at_the_first_batch(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch, after=0)
    line = refused("--out", "out")
    assert "out of memory" in line
    assert "--batch-size" in line


def test_out_of_memory_while_loading(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("harness.models.model.ResolvedModel.module", load)
    assert "--dtype bfloat16" in refused("--out", "out")


# --------------------------------------------------------------------------- plugged-in code


def outside(body: str, head: str = "@dataclass(frozen=True)\nclass Outside(Strategy):") -> str:
    return f'{head}\n    """From outside."""\n\n    {body}\n'


ASKED = "def should_exit(self, view):\n        "


def test_a_strategy_that_answers_in_the_wrong_shape(tiny_run: Command, plug_in: Callable[..., None]) -> None:
    plug_in("wrong_shape", outside(ASKED + "return torch.zeros(1, 1, dtype=torch.bool)"))
    line = tiny_run("--strategy", "wrong_shape").error
    assert "Outside.should_exit of outside-wrong_shape returned a tensor of shape (1, 1)" in line
    assert "at layer 4" in line


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["None", "[True]", "True"])
def test_a_strategy_that_answers_without_a_tensor(tiny_run: Command, plug_in: Callable[..., None], answer: str) -> None:
    plug_in("no_tensor", outside(ASKED + f"return {answer}"))
    assert "should_exit" in tiny_run("--strategy", "no_tensor").error


@pytest.mark.parametrize("points", ["(5,)", "(4, 12)", "(6, 4)", "(4, 4)", "(0, 4)", "(4, 99)"])
def test_a_strategy_that_asks_at_layers_that_are_no_exit_points(
    refused: Refused, plug_in: Callable[..., None], points: str
) -> None:
    plug_in(
        "lost", outside(f"def exit_points(self, model):\n        return {points}\n\n    {ASKED}return view.rows < 0")
    )
    line = refused("--strategy", "lost")
    assert f"lost asks to stop after layers {points}" in line
    assert "4, 6, 10" in line


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("class Outside(Strategy):", "not a dataclass"),
        ("@dataclass(frozen=True)\nclass Outside:", "subclass harness.contracts.Strategy"),
        ("@dataclass(frozen=True)\nclass Elsewhere(Strategy):", "cannot be imported"),
        ("import no_such_module\n\n@dataclass(frozen=True)\nclass Outside(Strategy):", "cannot be imported"),
    ],
)
def test_a_strategy_that_is_none(refused: Refused, plug_in: Callable[..., None], head: str, said: str) -> None:
    plug_in("imposter", outside(ASKED + "return view.rows < 0", head))
    assert said in refused("--strategy", "imposter")


def test_a_required_option_that_is_missing(refused: Refused, plug_in: Callable[..., None]) -> None:
    plug_in("needy", outside("depth: int\n\n    " + ASKED + "return view.rows < 0"))
    assert "needs depth" in refused("--strategy", "needy")


@pytest.mark.slow
def test_a_score_that_cannot_be_imported_is_left_out(
    shell: Callable[..., Any], tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    facts = tmp_path / "site" / "broken_score-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-score\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[harness.scores]\nbroken = broken_score:Broken\n")
    (tmp_path / "site" / "broken_score.py").write_text("raise RuntimeError('out of luck')\n")
    ran = shell(
        *("run", "--strategy", "full", "--model", tiny_llama, "--source", rows_file, "--limit", 1, "--energy", "none"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert ran.returncode == 0
    said = "the score 'broken' of broken-score cannot be imported (broken_score:Broken): RuntimeError: out of luck"
    assert said in ran.stderr
