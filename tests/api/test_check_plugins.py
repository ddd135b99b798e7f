"""Packages that plug in: one that `harness new` begins is sound, and one that breaks its contract is told how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.commands.plugins import TEMPLATES
from harness.registry import KV_POLICIES, SCORES, TASKS, Registry

Command = Callable[..., Any]


@pytest.mark.slow
def test_what_is_begun_runs_and_keeps_its_contract(
    cli: Command, tiny_llama: Path, install: Callable[..., Path], see: Callable[[Path], None], rows_file: Path
) -> None:
    for kind in TEMPLATES:
        ran = cli("new", kind, f"my-{kind}")
        assert ran.code == 0, ran.err
    assert "my-score exists. Give another name" in cli("new", "score", "my-score").error
    see(install(*(Path(f"my-{kind}").absolute() for kind in TEMPLATES)))
    ran = cli("check-plugin", "--model", tiny_llama, "--json")
    assert ran.code == 0, ran.err
    found = {one["entry"]["name"]: one for one in json.loads(ran.out)}
    assert set(found) == {f"my-{kind}" for kind in TEMPLATES}
    for one in found.values():
        assert (one["problem"], one["unchecked"]) == ("", ""), one
        assert len(one["held"]) > 1
    assert found["my-strategy"]["held"] == ["loads", "alone as in a batch", "lossless"]
    run = ("run", "--model", tiny_llama, "--source", rows_file, "--task", "py150", "--untimed", "--energy", "none")
    run += ("--weights-format", "float32")
    ran = cli(
        *run, "--limit", 2, "--strategy", "my-strategy", "--decode", "lossy,lossless+my-drafts", "--stop", "my-stop"
    )
    assert ran.code == 0, ran.err
    assert "no name of a plug-in" in cli("new", "task", "My Task").error
    assert "Did you mean 'strategy'" in cli("new", "stratgy", "x").error
    assert "unknown plug-in 'my-stratgy'" in cli("check-plugin", "my-stratgy").error


BROKEN: list[tuple[Any, str, str]] = [
    (
        None,
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            "Exit with company only."

            def should_exit(self, view):
                return torch.full((len(view.hidden_state),), len(view.hidden_state) > 1)
        """,
        "a prompt alone, and in a batch, ",
    ),
    (
        None,
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            "Fail."

            def should_exit(self, view):
                raise KeyError("oven")
        """,
        "oven",
    ),
    (
        None,
        """
        import os

        @dataclass(frozen=True)
        class Outside(Strategy):
            "End the process, and nobody the wiser."

            def should_exit(self, view):
                os._exit(0)
        """,
        "sys.exit(0) was called",
    ),
    (
        KV_POLICIES,
        """
        from harness.contracts import KVFacts, KVPolicy

        class Outside(KVPolicy):
            "Leave zeros, and say that it is exact."

            facts = KVFacts(defers=True)

            def leave(self, leaving):
                for row, position in zip(leaving.rows, leaving.positions, strict=True):
                    self.batch.entries[leaving.layer :, row, :, position] = 0
        """,
        "this policy, which says it is exact, and recompute, ",
    ),
    (
        SCORES,
        """
        from harness.contracts import Score

        class Outside(Score):
            "Percent."

            title = "percent"

            def sample(self, completion):
                return 100.0 * (completion.text == completion.reference)
        """,
        "is 100.0, and should be a number from 0 to 1 or None",
    ),
    (
        TASKS,
        """
        import random
        from tasks.code_completion import CodeCompletion
        from tasks.languages import PYTHON
        from tasks.rows import RecordRows

        class Outside(CodeCompletion):
            "Dice."

            name = "odd"
            code = PYTHON

            def embedded(self):
                text = f"def throw(dice):\\n    return dice.throw({random.random()})\\n" * 9
                return RecordRows("embedded", "embedded: dice", 1, lambda index: {"id": "a", "code": text})
        """,
        "it draws other samples the second time",
    ),
]


@pytest.mark.parametrize(("registry", "source", "said"), BROKEN)
def test_what_breaks_its_contract_is_told_how(
    cli: Command, tiny_llama: Path, plug_in: Callable[..., Path], registry: Registry[Any], source: str, said: str
) -> None:
    plug_in("odd", source, *(() if registry is None else (registry,)))
    ran = cli("check-plugin", "odd", "--model", tiny_llama)
    assert ran.code == 1, ran
    assert ran.out.startswith("broken ")
    assert said in ran.out.replace("\n", " ")


TWO_ANSWERS = """
    from harness.contracts import StateScore, StateTest

    @dataclass(frozen=True)
    class Outside(Strategy):
        "Say one thing in a test and another when asked."

        def should_exit(self, view):
            return torch.zeros(len(view.hidden_state), dtype=torch.bool)

        def state_test(self, points):
            return StateTest(tuple(StateScore(bias=torch.ones(1)) for _ in points), 0.0)
"""


@pytest.mark.model
def test_a_state_test_that_says_something_else_is_told(cli: Command, plug_in: Callable[..., Path]) -> None:
    """Only layers of whole panels are compiled, which the tiny model's are not."""
    plug_in("odd", TWO_ANSWERS)
    ran = cli("check-plugin", "odd")
    assert ran.code == 1, ran
    assert "its state test, and should_exit, " in ran.out
