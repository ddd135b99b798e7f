"""Every command and every block of code on the pages is one that the program takes."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
import yaml

from harness.cli import COMMANDS
from harness.commands.lazy import as_command
from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.registry import REGISTRIES, STRATEGIES
from harness.study.grid import expand, read_study
from tests.docs.pages import NAMES, ROOT, blocks, commands, script

GROUPS = {registry.group for registry in REGISTRIES.values()}
FSDP = "docs/large-models.md"


def study(block: str, folder: Path) -> None:
    """Read a study as ``harness study FILE`` does, up to what each of its runs decodes with."""
    (folder / "study.toml").write_text(block, encoding="utf-8")
    for point in expand(read_study(str(folder / "study.toml"))):
        for spec in point.config().specs():
            build_strategy(spec)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "toml")])
def test_toml_is_that_of_a_package_or_a_study(name: str, tmp_path: Path) -> None:
    for block in blocks(name, "toml"):
        found = tomllib.loads(block)
        if "project" in found:
            assert found["project"]["entry-points"].keys() <= GROUPS
        else:
            study(block, tmp_path)


def test_yaml_is_read_by_what_it_is_for(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    found = {name: blocks(name, "yaml") for name in NAMES if blocks(name, "yaml")}
    assert all(isinstance(yaml.safe_load(block), dict) for each in found.values() for block in each)
    (block,) = found[FSDP]
    (tmp_path / "fsdp.yaml").write_text(block, encoding="utf-8")
    config = load_config_from_file(str(tmp_path / "fsdp.yaml"))  # refuses keys that it does not know, but these:
    assert config.fsdp_config.keys() <= vars(launch_command_parser().parse_args(["script.py"])).keys()


def requests() -> Iterator[tuple[str, Any]]:
    """Yield path and body of every request that a page shows."""
    for name in NAMES:
        for block in blocks(name, ""):
            for command in re.findall(r"^curl .*(?:\n[ \t].*)*", block, re.M):
                _, address, *rest = shlex.split(command)
                yield urlsplit(address).path, json.loads(rest[rest.index("-d") + 1])


def test_requests_are_those_of_the_server() -> None:
    jsonschema = pytest.importorskip("jsonschema_rs")  # comes with schemathesis
    api = script("reference")["openapi"]()
    shown = list(requests())
    assert shown
    for path, body in shown:
        content = api["paths"][path]["post"]["requestBody"]["content"]
        (schema,) = {json.dumps(each["schema"]) for each in content.values()}
        jsonschema.validate({**json.loads(schema), "components": api["components"]}, body)


THEIRS = {"norm-growth", "mean-difference", "every-nth", "turning", "head=first/2000", "NAME", "S"}
"""What pages themselves define, or leave open, of strategies and recipes."""


PERCENTILE = re.compile(r"\bq\d+\b")
"""A threshold that a run, a sweep or a calibration observes first."""


@pytest.mark.parametrize("name", [name for name in NAMES if any(commands(name))])
def test_its_commands_are_taken(name: str) -> None:
    for words in commands(name):
        if len(words) > 1 and "--help" not in words and not words[1].startswith("--") and words[1].islower():
            parsed(words[1], words[2:])
            for spec in strategies(words):
                for one in parse_strategies(PERCENTILE.sub("0.5", spec)):
                    build_strategy(one)


def parsed(command: str, rest: list[str]) -> None:
    """Parse, without running anything: unknown options, missing ones and values of another type are refused."""
    assert command in COMMANDS, command
    known = as_command(command, COMMANDS[command].load())
    if command == "train" and rest:
        recipe, *rest = rest
        if recipe in THEIRS:
            return
        known = as_command(recipe, known.load(recipe))
    optional = [word.strip("[]") for word in rest]  # `harness verify [--weights-format fp16]`
    if optional and optional[-1] == "…" and not optional[-2].startswith("--"):
        optional.pop()  # and so on; behind an option it is the value
    try:
        known.make_context(f"harness {command}", optional)
    except Exception as error:
        names_a_command_alone = not rest or not any(word.startswith("-") for word in rest)
        if not (names_a_command_alone and "Missing" in str(error)):
            raise AssertionError(f"{shlex.join(['harness', command, *rest])}: {error}") from error


def strategies(words: list[str]) -> list[str]:
    """Return what stands behind ``--strategy``, but for what pages define."""
    given = [value for flag, value in itertools.pairwise(words) if flag == "--strategy"]
    names = [spec.partition("@")[0] for spec in given]  # what follows @ belongs to the run
    return [spec for spec in names if spec and not THEIRS & set(spec.split(":"))]


def test_every_strategy_has_its_place_in_the_tutorial() -> None:
    text = (ROOT / "docs" / "tutorials" / "compare.md").read_text(encoding="utf-8")
    own = {entry.name for entry in STRATEGIES.entries() if not entry.is_plugin}
    assert {name for name in own if f"`{name}`" not in text} == set()


NEED_A_MODEL = {"README.md": 1, "docs/lm-eval.md": 1, "docs/tutorials/python.md": 4, "docs/tutorials/own-model.md": 1}
"""Page → its blocks of Python that other tests run."""
API = "docs/tutorials/python.md"


def run(name: str, code: str, names: dict[str, Any]) -> None:
    exec(compile(code, name, "exec", dont_inherit=True), names)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python") and name not in NEED_A_MODEL])
def test_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "shown"}
    for block in blocks(name, "python"):
        run(name, block, names)


@pytest.mark.slow
@pytest.mark.model
def test_the_blocks_of_the_api_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(API, "python"):
        run(API, block, names)
    assert len(names["answer"].tokens) == 24
    assert set(names["exits"].exit_layer) == {4, 6, 8, 10, 12, 14, 18, 22, 26, 30}
    assert names["rows"].operating_point.tolist() == ["full", "__main__:Sure:threshold=0.8", "fixed:layer=22"]
    assert Path(names["rows"].attrs["run_dir"], "summary.json").is_file()

    run("README.md", blocks("README.md", "python")[0], names)  # here, since the model's kernels are compiled
    full = names["model"].generate("def fibonacci(n):\n    ", "full", max_new_tokens=24)
    assert names["answer"].tokens.token_id.tolist() == full.tokens.token_id.tolist()


@pytest.mark.slow
@pytest.mark.model
def test_the_block_of_lm_eval_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """On the row that its page shows, and the task that the walk's does."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    name = "docs/lm-eval.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    none_of_its_own = partial(evaluator.TaskManager, include_defaults=False)  # they take seconds to list
    monkeypatch.setattr(evaluator, "TaskManager", none_of_its_own)
    (row,), (task,) = blocks(name, "json"), blocks("docs/tutorials/walk.md", "yaml")
    Path("lines.jsonl").write_text(row, encoding="utf-8")
    Path("line.yaml").write_text(task, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "shown"}
    (block,) = blocks(name, "python")
    run(name, block, names)
    assert (names["spent"]["requests"], names["results"]["config"]["early_exit"]["num_layers"]) == (1, 30)
    assert 4 <= names["spent"]["exit_layer_mean"] <= 30
    assert names["spent"]["s_per_token"] > 0
