"""Whatever one sample cannot stand, its tokens, its logits, its text, costs a run that sample and no other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import CONTEXT
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import ModelError
from harness.models.model import LoadedModel, ResolvedModel
from harness.models.tokenizer import TransformersTokenizer

Command = Callable[..., Any]
Samples = list[dict[str, Any]]

POINTS = ("full", "fixed:layer=4", "confidence:threshold=0.5", "oracle")


@pytest.fixture
def measured(tiny_run: Command, tmp_path: Path) -> Callable[..., tuple[Samples, dict[str, Any]]]:
    """``measured(*arguments)``: samples and summary of a run of the tiny model."""

    def run(*arguments: object) -> tuple[Samples, dict[str, Any]]:
        out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        chosen = [part for point in POINTS for part in ("--strategy", point)]
        ran = tiny_run("--out", out, *([] if "--strategy" in arguments else chosen), *arguments)
        assert ran.code == 0, ran.err
        lines = (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines], json.loads((out / "summary.json").read_text())

    return run


@pytest.fixture
def after_loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[LoadedModel], LoadedModel]], None]:
    """``after_loading(change)``: weights that were sound when they were read, as those are that overflow in use."""
    load_all = ResolvedModel.load_all

    def install(change: Callable[[LoadedModel], LoadedModel]) -> None:
        def loaded(self: ResolvedModel, *given: Any, **more: Any) -> tuple[LoadedModel, ...]:
            return tuple(change(one) for one in load_all(self, *given, **more))

        monkeypatch.setattr(ResolvedModel, "load_all", loaded)

    return install


def poison(bad: int) -> Callable[[LoadedModel], LoadedModel]:
    """Make the embedding of one token NaN."""

    def change(loaded: LoadedModel) -> LoadedModel:
        embed = loaded.backbone.embed

        def lost(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            states = embed(token_ids, positions).clone()
            states[token_ids == bad] = math.nan
            return states

        return replace(loaded, backbone=replace(loaded.backbone, embed=lost))

    return change


def made(samples: Samples, *, but: str = "") -> dict[tuple[str, str], Any]:
    return {
        (one["operating_point"], one["sample_id"]): (one["token_ids"], one["exit_layers"], one["full_depth_ids"])
        for one in samples
        if one["sample_id"] != but
    }


@pytest.mark.slow
def test_of_a_batch_of_three_the_one_that_overflows_is_an_error(
    measured: Callable[..., Any], after_loading: Callable[..., None]
) -> None:
    arguments = ("--batch-size", 3)
    clean, _ = measured(*arguments)
    seen: dict[str, set[int]] = {}
    for one in clean:
        seen.setdefault(one["sample_id"], set()).update(one["prompt_ids"], one["token_ids"])
    hit, bad = next(
        (one["sample_id"], token)
        for one in clean
        for token in one["prompt_ids"]
        if all(token not in seen[name] for name in seen if name != one["sample_id"])
    )
    after_loading(poison(bad))
    samples, summary = measured(*arguments)
    failed = [one for one in samples if one["error"]]
    assert {(one["operating_point"], one["sample_id"]) for one in failed} == {(point, hit) for point in POINTS}
    assert all("are not finite at token 1: " in one["error"] for one in failed)
    assert made(samples, but=hit) == made(clean, but=hit)
    assert [(row["n"], row["errors"]) for row in summary["rows"]] == [(2, 1)] * len(POINTS)


def test_a_tokenizer_that_raises_on_one_text(
    measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, documents: list[str]
) -> None:
    encode = TransformersTokenizer.encode

    def picky(self: TransformersTokenizer, text: str) -> list[int]:
        if "save_token(" in text:
            raise RuntimeError("a piece of it\nis \ud800")
        return encode(self, text)

    monkeypatch.setattr(TransformersTokenizer, "encode", picky)
    samples, summary = measured("--limit", 0, "--strategy", "full")
    (failed,) = [one for one in samples if one["error"]]
    assert failed["error"].endswith("cannot be used (RuntimeError: a piece of it is \\ud800)")
    assert [(row["n"], row["errors"]) for row in summary["rows"]] == [(len(documents) - 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "said"), [("green-code", "half of a pair"), ("codexglue-line", "raises")])
def test_a_completion_that_cannot_be_spelled(
    measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, protocol: str, said: str
) -> None:
    """With the second protocol the stop rule reads it, in the midst of decoding."""
    arguments = ("--protocol", protocol, "--strategy", "full")
    clean, _ = measured(*arguments)
    begun = [one["token_ids"][:2] for one in clean]
    hit = next(one for one, two in zip(clean, begun, strict=True) if len(two) == 2 and begun.count(two) == 1)
    decode = TransformersTokenizer.decode
    behind = min(CONTEXT, len(hit["prompt_ids"]))

    def picky(self: TransformersTokenizer, token_ids: Sequence[int]) -> str:
        if hit["token_ids"][:2] in (list(token_ids[:2]), list(token_ids[behind : behind + 2])):
            if said == "raises":
                raise IndexError("no such piece")
            return "\ud83d"
        return decode(self, token_ids)

    monkeypatch.setattr(TransformersTokenizer, "decode", picky)
    samples, _ = measured(*arguments)
    (failed,) = [one for one in samples if one["error"]]
    assert failed["sample_id"] == hit["sample_id"]
    assert made(samples, but=hit["sample_id"]) == made(clean, but=hit["sample_id"])


def test_a_score_that_breaks_over_one_completion(measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clean, _ = measured("--strategy", "full")
    from harness.running import completions

    score = completions.score_sample

    def picky(completion: Any) -> Any:
        if list(completion.token_ids) == clean[0]["token_ids"]:
            raise ZeroDivisionError("division by zero")
        return score(completion)

    monkeypatch.setattr(completions, "score_sample", picky)
    samples, _ = measured("--strategy", "full")
    said = "the completion cannot be read and scored: ZeroDivisionError: division by zero."
    assert [one["error"] for one in samples] == [said, None, None]


def test_full_depth_that_makes_no_choice_along_a_text_fails_that_sample(
    measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices, asked = TeacherForcing.choices, iter(range(100))

    def lost(self: TeacherForcing, completion: Sequence[int]) -> list[int]:
        if next(asked) == 0:
            raise ModelError("logits of layer 12 are not finite at token 2: made up.")
        return choices(self, completion)

    monkeypatch.setattr(TeacherForcing, "choices", lost)
    samples, _ = measured("--strategy", "full", "--strategy", "fixed:layer=4")
    (failed,) = [one for one in samples if one["error"]]
    assert failed["operating_point"] == "fixed:layer=4"
    assert failed["error"] == "full depth along its text: logits of layer 12 are not finite at token 2: made up."
