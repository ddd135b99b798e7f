"""What a user can get wrong ends in one clear line and exit code 2, and nothing is written or lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run_files import full_disk

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
    ("--kv", "propagat", "'propagat'", "'propagate'"),
    ("--source", "embeded", "'embeded'", "Did you mean 'embedded'?"),
    ("--device", "cuda:99", "cuda:99"),
    ("--device", "abacus", "unknown to torch"),
    *((flag, "", flag) for flag in ("--model", "--source", "--task", "--energy")),
    ("--tdp-w", "-5", "--tdp-w -5"),
    ("--idle-s", "nan", "--idle-s nan"),
    ("--arrival-rate", "1e-300", "--arrival-rate 1e-300"),  # the next request would come after the universe
    ("--limit", DIGITS, "--limit 1111"),
    ("--strategy", "confidence:threshold=1.5", "confidence:threshold=1.5"),
    *(("--strategy", text, "") for text in ("", "confidence:,")),
    ("--strategy", "[bold]oops[/bold]\nand more", "[bold]oops[/bold] and more"),  # markup and line breaks: one line
    ("--strategy", "fixed:layer=5", "not an exit point", "4, 6, 10", "--exit-points all"),
    ("--strategy", "fixed:layer=12", "last layer"),
    ("--strategy", "fixed:layer=13", "beyond"),
    *(("--exit-points", points, "--exit-points") for points in ("4,12", "", "papr")),
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


# -------------------------------------------------------------------------------------- hub


@pytest.mark.parametrize("model", ["nobody/no-such-model", "opt-125m"])
def test_a_model_out_of_reach(refused: Refused, model: str) -> None:
    line = refused("--model", model)
    assert model in line
    assert "--weights random" in line
    assert "--model FOLDER" in line


# ------------------------------------------------------------------------------------ models


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


def test_out_that_cannot_be_used(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for out in ("file", "file/below", "loop"):
        line = refused("--out", out)
        assert f"cannot write into {out}: " in line
        assert "--out" in line
    line = refused("--out", "full")
    assert "not empty" in line
    assert "--resume full" in line


@pytest.mark.parametrize("out", [[], ["--out", "deep/down/out"]])
def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, out: list[str]
) -> None:
    def too_late(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr("harness.models.model.ResolvedModel.load", too_late)
    with full_disk():  # tests may run as root, who may write anywhere
        line = refused(*out)
    assert "cannot write into" in line
    assert "--out" in line


@pytest.fixture
def finished(tiny_run: Command, tmp_path: Path) -> Path:
    """A finished run, in ``out``."""
    assert tiny_run("--out", "out").code == 0
    return tmp_path / "out"


def test_resuming_with_another_configuration(cli: Command, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    for flag, value, said in (
        ("--kv", "skip", 'config.kv was "auto", now "skip"'),
        ("--limit", "2", "config.limit was 3, now 2"),
        ("--strategy", "oracle", 'config.strategies[0] was "full", now "oracle"'),
    ):
        assert said in cli("run", "--resume", finished, flag, value).error
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


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
