"""Runs from Python: strategies as objects in them, and their frames, whose columns one table explains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import RunConfig
from harness.errors import ConfigError, StoreError

Command = Callable[..., Any]


@pytest.fixture
def config(cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path) -> dict[str, Any]:
    """A small run; ``cli`` is asked for its cheap surroundings."""
    return {
        "model": str(tiny_llama),
        "source": str(rows_file),
        "limit": 3,
        "max_new_tokens": 4,
        "energy": "none",
        "threads": 1,
        "out": tmp_path / "out",
    }


def test_a_strategy_object_runs_like_a_registered_one_and_only_its_own_program_goes_on_with_it(
    config: dict[str, Any], sure: type[Any], cli: Command
) -> None:
    out = config["out"]
    settings = RunConfig(**config, strategies=("confidence:threshold=0.2", sure))
    rows = harness.run(settings)
    named, given = rows.operating_point[1:]
    assert (named, given) == ("confidence:threshold=0.2", f"{sure.__module__}:Sure:least=0.2")
    tokens = harness.read(out).tokens.set_index("operating_point")
    for column in ("token_id", "exit_layer"):
        assert tokens.loc[given][column].tolist() == tokens.loc[named][column].tolist()
    assert tokens.loc[given].exit_layer.min() < 12
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["operating_points"][2]["options"] == {"least": 0.2}
    assert manifest["environment"]["code"].keys() >= {sure.__module__.partition(".")[0], "strategies"}
    line = cli("run", "--resume", out).error
    assert f"the strategy {sure.__module__}:Sure was given as an object" in line
    again = harness.run(settings, resume=out)
    assert again.operating_point.tolist() == rows.operating_point.tolist()
    with pytest.raises(StoreError, match="another configuration"):
        harness.run(RunConfig(**config, strategies=(sure(0.3),)), resume=out)
    with pytest.raises(ConfigError, match="repeats = 2 needs fresh processes"):
        RunConfig(**config, strategies=(sure,), repeats=2)
    with pytest.raises(ConfigError, match=r"^dict is no RunConfig: give one, as harness\.RunConfig\(limit=4\)\.$"):
        harness.run({"limit": -1})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"manifest\.json"):
        harness.read(out.parent)


def test_frames_say_what_the_files_say_and_every_column_is_explained(config: dict[str, Any]) -> None:
    rows = harness.run(RunConfig(**config, strategies=("fixed:layer=4",)))
    assert rows.attrs["run_dir"] == str(config["out"])
    assert any("few samples" in note or "3 samples" in note for note in rows.attrs["notes"])
    run = harness.read(config["out"])
    assert run.rows.equals(rows)
    written = [json.loads(line) for line in (config["out"] / "samples.jsonl").read_text().splitlines()]
    assert len(run.samples) == len(written) == 6
    model, keys = harness.load(config["model"], weights_format="float32"), ["operating_point", "sample_id"]
    found = run.samples.set_index(keys)
    for sample in written:
        row = found.loc[(sample["operating_point"], sample["sample_id"])]
        assert row.latency_s == sample["latency_s"]
        assert row.edit_similarity == sample["scores"]["edit_similarity"]
        mine = run.tokens[(run.tokens.operating_point == row.name[0]) & (run.tokens.sample_id == row.name[1])]
        assert mine.token_id.tolist() == sample["token_ids"]
        assert mine.exit_layer.tolist() == sample["exit_layers"]
        assert mine.time_s.tolist() == sample["token_times_s"]
        assert mine.text.tolist() == sample["token_texts"]
        assert mine.place.tolist() == list(range(len(mine)))
        made = model.generate(sample["prompt_ids"], sample["operating_point"], max_new_tokens=4)
        assert made.tokens[["token_id", "exit_layer"]].equals(mine[["token_id", "exit_layer"]].reset_index(drop=True))
    assert repr(run) == f"{config['out']}: {rows.model[0]} on py150, 2 operating points"
    shown = run._repr_html_()
    assert shown.startswith("<h3>py150")
    assert shown.count("<tr>") == 3
    assert "3 samples are too few" in shown

    table = harness.columns()
    assert not table.duplicated(["table", "column"]).any()
    assert (table.meaning != "").all()
    names = {name: set(group) for name, group in table.groupby("table").column}
    scores = {name for name in run.samples if name not in names["read(…).samples"]}
    assert {"exact_match", "edit_similarity"} <= scores
    assert not scores & {"latency_s", "error"}
    assert set(run.rows) <= names["run(…), read(…).rows"]
    assert set(run.tokens) == names["read(…).tokens"]
    assert set(model.trace("a = b")) == names["trace(…)"]
    assert set(made.tokens) == names["generate(…).tokens"]
    seconds = table[table.column.str.endswith("_s") & ~table.column.str.contains("_per_")]
    assert (seconds.unit == "s").all()
