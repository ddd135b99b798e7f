"""Files in TOML and YAML that pages show are read as whoever reads them would; requests go to what the server has."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from harness.config.options import build_strategy
from harness.errors import HarnessError
from harness.registry import REGISTRIES
from harness.study.grid import expand, read_study
from tests.docs.pages import NAMES, blocks, hook

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


@pytest.mark.parametrize("change", [("[run]", "[runs]"), ("limit = 100", "limits = 100"), ("=0.9,0.95", "=9")])
def test_a_study_that_errs_would_be_found(change: tuple[str, str], tmp_path: Path) -> None:
    block, *_ = blocks("docs/studies.md", "toml")
    with pytest.raises(HarnessError):
        study(block.replace(*change), tmp_path)


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
    api = hook("reference")["openapi"]()
    shown = list(requests())
    assert shown
    for path, body in shown:
        content = api["paths"][path]["post"]["requestBody"]["content"]
        (schema,) = {json.dumps(each["schema"]) for each in content.values()}
        jsonschema.validate({**json.loads(schema), "components": api["components"]}, body)
