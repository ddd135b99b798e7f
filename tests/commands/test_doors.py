"""What cannot be done is refused at the door, before anything slow, by the place where it stands: a table per door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli import COMMANDS
from harness.commands.lazy import as_command
from harness.commands.plugins import TEMPLATES
from harness.commands.training import Recipes
from harness.config import RunConfig
from harness.config.model import Configuration
from harness.errors import ConfigError, OutdatedError, StoreError
from harness.registry import RECIPES, REGISTRIES
from harness.serving.config import ServeConfig
from harness.store.record_files import check_version
from harness.study.grid import read_study
from tests.run_files import full_disk

Command = Callable[..., Any]

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def every_command() -> dict[str, Any]:
    things = {name: point.load() for name, point in COMMANDS.items()}
    plain = {name: thing for name, thing in things.items() if not isinstance(thing, type)}
    return plain | {f"train {name}": Recipes().load(name) for name in RECIPES.names()}


@pytest.mark.parametrize("name", sorted(every_command()))
def test_no_option_takes_an_empty_text(name: str) -> None:
    command = as_command(name.rsplit(maxsplit=1)[-1], every_command()[name])
    needed = [
        word for one in command.params if one.required for word in ([one.opts[0], "x"] if "-" in one.opts[0] else [])
    ]
    arguments = ["x"] * sum(one.required and one.param_type_name == "argument" for one in command.params)
    for option in command.params:
        if option.param_type_name == "option" and not option.is_flag and option.nargs == 1:
            with pytest.raises((ConfigError, _UsageError)) as refused:
                command.make_context(name, [*needed, option.opts[0], "", *arguments])
            assert getattr(refused.value, "param", None) is option or option.opts[0] in str(refused.value)


@pytest.mark.parametrize("options", [RunConfig, ServeConfig])
def test_no_setting_of_a_file_is_empty_or_hidden_behind_a_flag(options: type[Configuration]) -> None:
    for name, field in options.model_fields.items():
        if field.annotation in (str, str | None):
            with pytest.raises(ConfigError, match=name):
                options.build({name: ""})
        with pytest.raises(ConfigError):
            options.of_file({name: {"no": "value"}}, {name: field.get_default(call_default_factory=True)})


def test_a_flag_may_end_what_a_file_alone_contradicts() -> None:
    file = {"untimed": True, "weights_format": "float32", "energy": "auto"}
    with pytest.raises(ConfigError, match="untimed"):
        RunConfig.of_file(file, {})
    assert RunConfig.of_file(file, {"energy": "none"}).energy == "none"


WRITERS = {
    "run": (), "trace": (), "sweep": ("--replay", "nowhere", "--strategy", "full"),
    "prepare": ("nowhere/at/all",), "report": ("nowhere",), "leaderboard": ("nowhere",),
    **{f"train {name}": () for name in RECIPES.names() if "out" in RECIPES.load(name).model_fields},
}  # fmt: skip
"""Commands with ``--out DIR`` → what they are given beside."""


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("out", ["file", "file/below", "/proc/no/folder"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    cli: Command, tmp_path: Path, name: str, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    needed = Recipes().example(name.split()[1]).split()[3:] if name.startswith("train ") else ()
    model = ("--model", "nowhere/at/all") if "model" in name or name.startswith(("train", "run", "trace")) else ()
    line = cli(*name.split(), *WRITERS[name], *needed, *model, "--out", out).error
    assert out in line
    assert "--out" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("bytes_left", [0, 300])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_package_is_begun_whole_or_not_at_all(cli: Command, tmp_path: Path, kind: str, bytes_left: int) -> None:
    with full_disk(bytes_left):
        line = cli("new", kind, "my-own").error
    assert "my-own" in line
    assert not list(tmp_path.iterdir())


def test_rows_name_the_file_that_cannot_be_written(cli: Command, tmp_path: Path, finished: Path) -> None:
    with full_disk(10):
        line = cli("convert", finished, "--out", tmp_path / "rows.jsonl").error
    assert "rows.jsonl" in line
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_package_takes_no_name_that_means_something_else(cli: Command, tmp_path: Path, kind: str) -> None:
    (registry,) = (one for one in REGISTRIES.values() if one.group == f"harness.{TEMPLATES[kind][0]}")
    for name in (*(name for name in registry.names() if "_" not in name and "/" not in name), "json", "torch"):
        assert f"'{name}'" in cli("new", kind, name).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[[override]]\nwhere = {}\n", "needs = 'a GPU'\n"])
def test_a_study_of_nothing_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"study\.toml"):
        read_study(str(tmp_path / "study.toml"))


@pytest.mark.parametrize("file", ["manifest.json", "index.json", "config.json", "study.json"])
def test_what_is_no_folder_of_artefacts_is_not_taken_for_an_empty_one(
    tiny_run: Command, tmp_path: Path, file: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / file).write_text("{}")
    assert "--artefacts other" in tiny_run("--artefacts", "other").error


@pytest.mark.parametrize(
    ("version", "error"),
    [(None, StoreError), ("1", StoreError), (1.0, StoreError), (True, StoreError), (2, OutdatedError), (1, None)],
)
def test_a_version_is_refused_for_what_is_wrong_with_it(version: object, error: type[StoreError] | None) -> None:
    content = {} if version is None else {"schema_version": version}
    if error is None:
        check_version(content, "it", 1)
        return
    with pytest.raises(StoreError) as refused:
        check_version(content, "it", 1)
    assert type(refused.value) is error
    if version is not None:
        assert f"{version!r}" in str(refused.value)


@pytest.mark.parametrize("keeps_seal", [True, False])
def test_a_changed_summary_is_computed_again_and_said_to_be(
    cli: Command, finished: Path, caplog: pytest.LogCaptureFixture, keeps_seal: bool
) -> None:
    file = finished / "summary.json"
    first = cli("report", finished)
    assert (first.code, caplog.messages) == (0, [])
    whole = file.read_text()
    content = json.loads(whole)
    content["machine"] = "another"
    if not keeps_seal:
        del content["sha256"]
    file.write_text(json.dumps(content, indent=2) + "\n")
    again = cli("report", finished)
    assert (again.code, again.out) == (0, first.out)
    (said,) = caplog.messages
    assert said.startswith(str(file))
    assert file.read_text() == whole
