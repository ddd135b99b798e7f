"""All that decides what is measured is part of what must be the same: one table, changed between two commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import ModelRequest
from harness.models.artefacts import read_artefact, write_artefact
from harness.models.controllers import OBSERVATIONS, Network, write_controller
from harness.models.model import resolve
from harness.training.identity import identity
from tests.conftest import snapshot
from tests.models.test_fingerprints import DECIDING

Shell = Callable[..., subprocess.CompletedProcess[str]]

POINTS = (4, 6, 10)
STRATEGY = """
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

import beside_it
from harness.contracts import DraftRule, DraftSource
from harness.models.controllers import LearnedStrategy


@dataclass(frozen=True)
class Theirs(LearnedStrategy):
    "A learned strategy, part of which lies in another file."

    kind: ClassVar[str] = "theirs"
    option: ClassVar[str] = "maps"
    threshold: Annotated[float | None, Field(description="least score")] = None
    maps: Annotated[str, Field(description="maps")] = ""

    def exit_threshold(self, options):
        return options["threshold"] + beside_it.MORE
"""
DRAFTS = """
from dataclasses import dataclass

from harness.contracts import DraftRule, DraftSource


@dataclass(frozen=True)
class Echo(DraftSource):
    "Propose the last token again."

    def start(self, model, batch):
        return Again()


class Again(DraftRule):
    def propose(self, draft, max_tokens):
        return draft.token_ids[-1:]
"""


@dataclass(frozen=True)
class World:
    """A model, what was trained for it, rows, two packages of others, and commands that begin with them."""

    root: Path
    shell: Shell

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": os.pathsep.join([str(self.root / "site"), os.environ.get("PYTHONPATH", "")])}

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return self.shell(*arguments, cwd=self.root, env=self.env | env)

    def begun(self, *arguments: object) -> None:
        ran = self.run(*arguments)
        assert ran.returncode == 0, ran.stderr

    @contextmanager
    def changed(self, change: Callable[[Path], object]) -> Iterator[None]:
        """Change files for a while, behind which all are as before."""
        kept = self.root.with_name("kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.root, kept)
        try:
            change(self.root)
            yield
        finally:
            shutil.rmtree(self.root)
            kept.rename(self.root)


def install(site: Path, name: str, group: str, attribute: str, source: str) -> None:
    (site / f"{name}.py").write_text(source)
    facts = site / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "RECORD").write_text(f"{name}.py,,\n")
    (facts / "entry_points.txt").write_text(f"[harness.{group}]\n{name} = {name}:{attribute}\n")


def train(model: Path, parts: Path) -> None:
    """Write an adapter, shortcuts, a controller, and what a cheap head, a stop rule and exits of prompts go by."""
    chance = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) / 8

    def info() -> Any:
        return resolve(ModelRequest(str(model), artefacts=str(parts))).info

    parts.mkdir()
    base = {"model_fingerprint": info().fingerprint, "base_fingerprint": info().fingerprint}
    name = "model.layers.3.mlp.up_proj"
    factors = {f"{name}.lora_A": some(2, 32), f"{name}.lora_B": some(64, 2)}
    write_artefact(parts / "adapter.json", "adapter", factors, {**base, "scale": 2.0})
    maps = {f"{point}.weight": torch.eye(32) + some(32, 32) for point in POINTS}
    maps |= {f"{point}.bias": torch.zeros(32) for point in POINTS}
    tuned = {"model_fingerprint": info().fingerprint, "exit_points": list(POINTS)}
    write_artefact(parts / "shortcut.json", "shortcut", maps, tuned)
    facts = identity(info(), "t") | {"threshold": 0.5, "documents": []}
    networks = {str(point): Network(((some(1, 32), torch.zeros(1)),)) for point in POINTS}
    write_controller(parts / "theirs.json", "theirs", OBSERVATIONS["normal"], networks, facts)
    write_artefact(parts / "shortlist.json", "shortlist", {"token_ids": torch.arange(320).int()}, facts)
    ends = {f"{layer}.0.weight": some(1, 32) for layer in (*POINTS, 12)} | {
        f"{layer}.0.bias": torch.zeros(1) for layer in (*POINTS, 12)
    }
    write_artefact(parts / "excess.json", "excess", ends, facts)
    rows = (12 - 6 - 1) * 2 * 2 * 8
    made = {"6.read": some(24, 64), "6.made": some(rows, 24), "6.bias": some(rows)}
    write_artefact(parts / "prompt-exit.json", "prompt-exit", made, facts | {"exits": [6]})


MODEL = ("--model", "model", "--artefacts", "parts")
BEGIN = {
    "run": (
        *("run", *MODEL, "--source", "rows.jsonl", "--limit", 2, "--max-new-tokens", 3, "--energy", "none"),
        *("--strategy", "theirs", "--strategy", "confidence:head=shortlist/48", "--decode", "lossy,lossless+echo"),
        *("--stop", "none,excess", "--prompt-exit", "none,layer=6:tail=8", "--out", "out"),
    ),
    "trace": ("trace", *MODEL, "--task", "py150", "--source", "rows.jsonl", "--documents", 8, "--out", "traced"),
    "calibrate": (
        *("calibrate", *MODEL, "--source", "rows.jsonl", "--limit", 6, "--max-new-tokens", 3, "--energy", "none"),
        *("--strategy", "theirs:threshold=9,1", "--target", "agreement=0.1", "--method", "conformal"),
        *("--idle-s", 0, "--out", "calibrated", "--file", "point.json"),
    ),
}
GO_ON = {
    "run": ("run", "--resume", "out"),
    "trace": ("train", "hash", *MODEL, "--traces", "traced", "--out", "new", "--least", 1),
    "calibrate": (
        *("run", *MODEL, "--source", "rows.jsonl", "--limit", 2, "--max-new-tokens", 3, "--energy", "none"),
        *("--strategy", "@point.json", "--out", "new"),
    ),
}


@pytest.fixture(scope="module")
def world(tiny_llama: Path, rows_file: Path, forked: Shell, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("deciding") / "world"
    shutil.copytree(tiny_llama, root / "model")
    shutil.copy(rows_file, root / "rows.jsonl")
    (root / "site").mkdir()
    install(root / "site", "theirs", "strategies", "Theirs", STRATEGY)
    install(root / "site", "echo", "drafts", "Echo", DRAFTS)
    (root / "site" / "beside_it.py").write_text("MORE = 0.0\n")
    here = os.getcwd()
    os.chdir(root)
    try:
        train(Path("model"), Path("parts"))
    finally:
        os.chdir(here)
    made = World(root, forked)
    for command in BEGIN.values():
        made.begun(*command)
    return made


def rewritten(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Change the tensors of an artefact, and nothing that its JSON says but their hash."""

    def apply(root: Path) -> None:
        file = root / "parts" / f"{name}.json"
        artefact = read_artefact(file, name)
        tensors = artefact.tensors()
        change(tensors)
        write_artefact(file, name, tensors, artefact.facts)

    return apply


def one_number(tensors: dict[str, torch.Tensor]) -> None:
    first = sorted(tensors)[0]
    tensors[first] = tensors[first].clone()
    tensors[first].view(-1)[-1] += 1


def told(name: str, **facts: Any) -> Callable[[Path], object]:
    """Change what an artefact's JSON says."""

    def apply(root: Path) -> None:
        file = root / "parts" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))

    return apply


def source(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Change a text in a file."""

    def apply(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return apply


def reordered(root: Path) -> None:
    first, *others = (root / "rows.jsonl").read_text().splitlines(keepends=True)
    (root / "rows.jsonl").write_text("".join([*others, first]))


def of_model(what: str) -> Callable[[Path], object]:
    return lambda root: DECIDING[what](root / "model")


ALL, RUN = ("run", "trace", "calibrate"), ("run",)
FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    **{what: (of_model(what), ALL) for what in DECIDING},
    "adapter: tensors": (rewritten("adapter", one_number), ALL),
    "adapter: its scale": (told("adapter", scale=1.5), ALL),
    "shortcut: tensors": (rewritten("shortcut", one_number), ALL),
    "shortcut: its exit module": (told("shortcut", exit_module="mlp/8"), ALL),
    "theirs: tensors": (rewritten("theirs", one_number), ("run", "calibrate")),
    "theirs: its threshold": (told("theirs", threshold=0.0001), ("run", "calibrate")),
    "theirs: what it looks at": (
        told("theirs", observation=OBSERVATIONS["paper"].as_dict()),
        ("run", "calibrate"),
    ),
    "shortlist: tensors": (rewritten("shortlist", lambda made: made.update(token_ids=made["token_ids"].flip(0))), RUN),
    "shortlist: facts": (told("shortlist", seed=9), RUN),
    "excess: tensors": (rewritten("excess", one_number), RUN),
    "excess: its threshold": (told("excess", threshold=0.1), RUN),
    "prompt-exit: tensors": (rewritten("prompt-exit", one_number), RUN),
    "prompt-exit: facts": (told("prompt-exit", rank=8), RUN),
    "data": (source("rows.jsonl", "total", "whole"), ("run", "calibrate")),
    "order": (reordered, RUN),
    "a plug-in's code": (source("site/theirs.py", "options[", "1 * options["), ("run", "calibrate")),
    "what a plug-in's code imports": (source("site/beside_it.py", "0.0", "1.0"), ("run", "calibrate")),
    "a draft source's code": (source("site/echo.py", "[-1:]", "[-2:]"), RUN),
}
"""What lies in files and decides → a change of it, and the commands whose results it parts from what comes after."""

FLAGS = {
    "threads": (("--threads", 2), ("run",)),
    "dtype": (("--dtype", "bfloat16"), ("run", "calibrate")),
    "seed": (("--seed", 5), ("run",)),
}
"""What flags decide, likewise."""

CASES = [(what, command) for what, (_, commands) in (FILES | FLAGS).items() for command in commands]  # type: ignore[operator]


@pytest.mark.parametrize(("what", "command"), CASES, ids=[f"{what}, {command}" for what, command in CASES])
def test_what_decides_parts_two_commands(world: World, what: str, command: str) -> None:
    """The second one refuses; a run with a certificate goes on, and says that nothing is promised of it."""
    change, flags = (FILES[what][0], ()) if what in FILES else (lambda root: None, FLAGS[what][0])
    with world.changed(change):
        before = snapshot(world.root)
        ran = world.run(*GO_ON[command], *flags)
        lines = [line for line in ran.stderr.splitlines() if line.startswith(("error:", "warning:"))]
        if command == "calibrate" and ran.returncode == 0:
            assert any("nothing is promised of" in line for line in lines), ran.stderr
        else:
            assert (ran.returncode, ran.stderr.count("error:"), "Traceback" in ran.stderr) == (2, 1, False), ran.stderr
            assert snapshot(world.root) == before


@pytest.mark.parametrize("command", ALL)
def test_what_is_the_same_goes_on(world: World, command: str) -> None:
    with world.changed(lambda root: None):
        ran = world.run(*GO_ON[command])
        assert ran.returncode == 0, ran.stderr
        assert "nothing is promised" not in ran.stderr


PROCESSOR = {
    "threads of torch": {"OMP_NUM_THREADS": "2"},
    "instructions of torch": {"ATEN_CPU_CAPABILITY": "default"},
    "instructions of oneDNN": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "instructions of compiled products": {"NUMBA_CPU_FEATURES": "+sse2"},
    "usable cores": {},
}
"""What a process may multiply with → the surroundings that change it."""


@pytest.mark.slow
@pytest.mark.parametrize("what", [None, *PROCESSOR])
def test_another_effective_processor_does_not_go_on(world: World, shell: Shell, what: str | None) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if what in ("threads of torch", "usable cores") and len(cores) < 2:
        pytest.skip("there is one core here")
    env = world.env | {"OMP_NUM_THREADS": "1"} | PROCESSOR.get(what or "", {})
    narrowed = {"preexec_fn": lambda: os.sched_setaffinity(0, cores[:1])} if what == "usable cores" else {}
    with world.changed(lambda root: None):
        before = snapshot(world.root)
        ran = shell("run", "--resume", "out", cwd=world.root, env=env, **narrowed)
        if what is None:
            assert ran.returncode == 0, ran.stderr
            return
        assert (ran.returncode, ran.stderr.count("error:")) == (2, 1), ran.stderr
        assert "was measured in another environment" in ran.stderr
        assert snapshot(world.root) == before


def test_a_record_has_the_value_of_every_option(world: World) -> None:
    manifest = json.loads((world.root / "out" / "manifest.json").read_text())
    points = {point["name"]: point for point in manifest["operating_points"]}
    assert points["theirs"]["options"] == {"threshold": 0.5, "maps": ""}
    for point in points.values():
        assert None not in point["options"].values()
    assert {"theirs", "theirs.json"} <= points["theirs"]["artefacts"].keys()


@pytest.mark.parametrize("command", ["compare", "leaderboard"])
def test_tables_of_two_runs_tell_thresholds_apart(world: World, command: str) -> None:
    """The same words on two command lines, and another default behind them."""
    with world.changed(told("theirs", threshold=0.0001)):
        world.begun(*BEGIN["run"][:-1], "second")
        if command == "compare":
            ran = world.run("compare", "out", "second", "--json")
            assert ran.returncode == 0, ran.stderr
            found = {each["what"]: (each["a"], each["b"]) for each in json.loads(ran.stdout)["differences"]}
            assert found["theirs: option threshold"] == ("0.5", "0.0001")
            assert "theirs: artefact theirs.json" in found
        else:
            world.begun("leaderboard", "out", "second", "--out", "pages")
            told_of = "".join(file.read_text() for file in (world.root / "pages").rglob("*.js*"))
            thresholds = set(re.findall(r'"option threshold",\s*"([^"]+)"', told_of))
            assert thresholds >= {"0.5", "0.0001"}  # others are of built-in strategies
