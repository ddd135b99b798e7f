"""Full depth's choices in the records of a run: right, at no cost inside windows, and never lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import RunConfig, run
from harness.decoding.teacher_forcing import TeacherForcing
from tests.run_files import lines


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        "limit": 4,
        "max_new_tokens": 8,
        "exit_points": "all",
        "strategies": ("fixed:layer=6", "random:probability=0.3"),
    }


def forced(folder: Path, found: list[dict[str, Any]]) -> list[list[int]]:
    """Transformers' choices along each sample's completion."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    chosen = []
    for sample in found:
        with torch.no_grad():
            logits = model(torch.tensor([sample["prompt_ids"] + sample["token_ids"]])).logits[0]
        chosen.append(logits[len(sample["prompt_ids"]) - 1 : -1].argmax(-1).tolist())
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("kv", ["propagate", "recompute", "none", "skip"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.crossed
def test_records_hold_what_transformers_would_choose(
    config: dict[str, Any], tiny_llama: Path, tiny_opt: Path, tmp_path: Path, family: str, kv: str
) -> None:
    model = tiny_llama if family == "llama" else tiny_opt
    frame = run(RunConfig(**config | {"model": str(model), "kv": kv})).set_index("operating_point")
    found = lines(tmp_path / "out", "samples")
    assert [sample["full_depth_ids"] for sample in found] == forced(model, found)
    assert frame.loc["full", "own_text_agreement"] == 1
    for point in config["strategies"]:
        own = [sample for sample in found if sample["operating_point"] == point]
        first = 0 if kv == "none" else 1
        same = [
            [a == b for a, b in zip(one["token_ids"][first:], one["full_depth_ids"][first:], strict=True)]
            for one in own
        ]
        expected = sum(sum(each) / len(each) for each in same) / len(same)
        assert frame.loc[point, "own_text_agreement"] == pytest.approx(expected)
        assert expected < 1


def test_full_depth_and_a_text_that_came_before_cost_nothing(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    choices = TeacherForcing.choices

    def counted(self: TeacherForcing, completion: Any) -> list[int]:
        asked.append(len(completion))
        return choices(self, completion)

    monkeypatch.setattr(TeacherForcing, "choices", counted)
    several = ("random:probability=1", "random:probability=1.0:seed=1")  # both leave at the first exit point
    run(RunConfig(**config | {"strategies": several}))
    assert asked == [8] * 4


def test_failed_samples_have_no_choices(config: dict[str, Any], tmp_path: Path, plug_in: Callable[..., None]) -> None:
    plug_in(
        "fragile",
        """
        from harness.errors import ModelError

        @dataclass(frozen=True)
        class Outside(Strategy):
            def exit_points(self, model):
                return model.exit_points

            def should_exit(self, view):
                if view.position.max() % 2:
                    raise ModelError("an odd place")
                return torch.ones(len(view.rows), dtype=torch.bool)
        """,
    )
    run(RunConfig(**config | {"strategies": ("fragile",), "max_new_tokens": 2, "limit": 8}))
    found = [sample for sample in lines(tmp_path / "out", "samples") if sample["operating_point"] == "fragile"]
    failed = [sample for sample in found if sample["error"]]
    assert 0 < len(failed) < len(found)
    for sample in found:
        assert len(sample["full_depth_ids"]) == (0 if sample["error"] else 2)


def test_memory_that_runs_out_keeps_what_was_finished(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.errors import OutOfMemoryError

    left = iter(range(3))

    def choices(self: TeacherForcing, completion: Any) -> list[int]:
        if next(left, None) is None:
            raise MemoryError
        return list(completion)

    with monkeypatch.context() as tight:
        tight.setattr(TeacherForcing, "choices", choices)
        with pytest.raises(OutOfMemoryError, match=r"finished windows are kept.*--resume"):
            run(RunConfig(**config))
    kept = lines(tmp_path / "out", "samples")
    assert sum(sample["operating_point"] != "full" for sample in kept) == 3
    assert list(run(RunConfig(**config), resume=tmp_path / "out")["n"]) == [4, 4, 4]
    assert lines(tmp_path / "out", "samples")[: len(kept)] == kept
