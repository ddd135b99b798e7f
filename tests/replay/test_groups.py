"""Where exits pay: groups of a trace that was written by hand, and of whole sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import ModelRequest
from harness.models.artefacts import Artefact
from harness.models.model import ResolvedModel, resolve
from harness.records.calibration import KIND, POSITION, PROJECT, TokenGroup
from harness.replay.groups import describe_groups
from harness.replay.replay import Outcome
from harness.replay.sweep import SweepResult
from harness.training.traces.store import Traces, TraceWriter
from tests.training.tracing import FACTS

Swept = Callable[..., SweepResult]
POINTS, LAYERS = (4, 6, 10), 12
NEVER = len(POINTS)
CODE = "x=4\nif y:"  # the first is read, the others are rows' tokens; behind them "z", by the last layer
KINDS_OF_CODE = ("operator", "number", "white space", "keyword", "keyword", "white space", *("identifier", "operator"))


@pytest.fixture(scope="module")
def resolved(tiny_llama: Path) -> ResolvedModel:
    """The tiny model, as if it had been tuned on file ``a``, of ``org.known``, and not on ``b``, which was held out."""
    found = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    tuning = {"documents": ["a", "b"], "held_out": ["b"], "projects": ["org.known"]}
    info = dataclasses.replace(found.info, weights="tuned")
    return dataclasses.replace(found, info=info, adapter=Artefact("adapter", Path("adapter.json"), tuning, ""))


def write(
    folder: Path, resolved: ResolvedModel, documents: list[dict[str, Any]], start: int = 8, **facts: Any
) -> Traces:
    """Write documents that read :data:`CODE`, or ``text``; ``right``: of each row the place of the first right exit."""
    shape = {"exit_points": list(POINTS), "num_layers": LAYERS, "new_tokens": 0}
    writer = TraceWriter(folder, {**FACTS, **shape, **facts}, resume=False)
    for number, document in enumerate(documents):
        text, right = document.get("text", CODE), document["right"]
        ids = [resolved.tokenizer.encode(letter)[0] for letter in text]
        final = torch.tensor([*ids[1:], resolved.tokenizer.encode("z")[0]])
        leaves = torch.arange(NEVER).expand(len(ids), NEVER) == torch.tensor(right).unsqueeze(1)
        empty = torch.zeros(len(ids), NEVER)
        described = {"stream": "py150, x", "id": f"d{number}", "length": 99}
        described |= {name: document[name] for name in ("key", "project", "prompt") if name in document}
        writer.add(
            {"key": f"k{number}", **described},
            {
                "hidden": torch.zeros(len(ids), NEVER, 8).half(), "last": torch.zeros(len(ids), 8).half(),
                "top": torch.where(leaves, final.unsqueeze(1), 319).int(), "top1": empty.half(), "top2": empty.half(),
                "entropy": empty.half(), "final": final.int(), "final1": empty[:, 0].half(),
                "input": torch.tensor(ids).int(), "position": torch.arange(start, start + len(ids)).int(),
            },
        )  # fmt: skip
    writer.flush()
    return Traces.open(folder)


def groups(
    traces: Traces, resolved: ResolvedModel, drafting: Mapping[str, Outcome] | None = None
) -> dict[str, TokenGroup]:
    every = torch.ones(traces.tokens, dtype=torch.bool)
    found = list(describe_groups(traces, resolved, every, drafting or {}))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def share_of(one: TokenGroup) -> float | None:
    share = one.drafts[0].share
    return None if share is None else share.value


def test_kinds_by_hand(tmp_path: Path, resolved: ResolvedModel) -> None:
    """The operators are right at the first exit, white space at the second and the last layer, names never."""
    right = [0, 1, 1, 0, 2, NEVER, NEVER, 0, NEVER]
    found = groups(write(tmp_path / "t", resolved, [{"right": right}]), resolved)
    kinds = {name: one for name, one in found.items() if one.by == KIND}
    assert {name: one.tokens for name, one in kinds.items()} == {
        "identifier": 2, "keyword": 2, "operator": 2, "number": 1, "white space": 2,
    }  # fmt: skip
    depths = {name: one.sufficient_layer for name, one in kinds.items()}
    assert depths == {"identifier": 12, "keyword": (4 + 10) / 2, "operator": 4, "number": 6, "white space": 9}
    assert kinds["keyword"].agreement == pytest.approx((0.5, 0, 0.5))
    every = found["all tokens"]
    assert every.agreement == pytest.approx((3 / 9, 2 / 9, 1 / 9))
    assert every.sufficient_layer == pytest.approx((3 * 4 + 2 * 6 + 10 + 3 * 12) / 9)
    assert every.sufficient_layer_ci is None, "of one document"


def test_a_kind_is_told_behind_the_prompt(tmp_path: Path, resolved: ResolvedModel) -> None:
    ids = [resolved.tokenizer.encode(letter)[0] for letter in 'x="a']
    prompt = {"prompt": " ".join(map(str, ids)), "text": 'a b"', "right": [0] * 4}
    found = groups(write(tmp_path / "t", resolved, [prompt], new_tokens=4), resolved)
    assert {one.name: one.tokens for one in found.values() if one.by == KIND} == {"string": 3, "identifier": 1}


def test_positions_and_projects_by_hand(tmp_path: Path, resolved: ResolvedModel) -> None:
    rows = len(CODE)
    documents = [
        {"key": "a", "project": "org.known", "right": [0] * rows},
        {"key": "b", "project": "org.known", "right": [1] * rows},
        {"key": "c", "project": "com.new", "right": [2] * rows},
        {"key": "d", "right": [NEVER] * rows},
    ]
    traces = write(tmp_path / "t", resolved, documents, start=26)
    found = groups(traces, resolved)
    positions = {one.name: one.tokens for one in found.values() if one.by == POSITION}
    assert positions == {"0 to 29": 4 * 4, "30 to 109": 4 * (rows - 4)}
    projects = {one.name: one.sufficient_layer for one in found.values() if one.by == PROJECT}
    assert projects == {"file read in tuning": 4, "project read in tuning": 6, "project not read": 10}
    untuned = dataclasses.replace(resolved, info=dataclasses.replace(resolved.info, weights="random"), adapter=None)
    assert not [one for one in groups(traces, untuned).values() if one.by == PROJECT]


def test_drafts_count_where_they_stand(tmp_path: Path, resolved: ResolvedModel) -> None:
    traces = write(tmp_path / "t", resolved, [{"right": [0] * len(CODE)}])
    drafting = Outcome.nothing(1)
    drafting.drafted = torch.tensor([1, 0, 1, 2, 1, 1, 0, 1, 0])
    drafting.stood = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1, 0])
    found = groups(traces, resolved, {"s@lossless": drafting})
    counted = {name: (one.drafts[0].drafted, one.drafts[0].accepted) for name, one in found.items()}
    assert counted["all tokens"] == (7, 4)
    assert counted["keyword"] == (3, 2)
    assert counted["white space"] == (2, 0)
    assert counted["identifier"] == (0, 0)
    assert share_of(found["identifier"]) is None
    assert share_of(found["keyword"]) == pytest.approx(2 / 3)


def test_groups_of_a_sweep_add_up(swept: Swept, generated: Path, tmp_path: Path) -> None:
    strategy = "layerskip:layer=10:length=3"
    made = {"folder": generated, "document_split": "all", "references": ("oracle",)}
    result = swept(strategy, **made, out=tmp_path / "out")
    rows = {row.operating_point: row for row in result.sweep.rows}
    assert result.calibration is not None
    every, *others = result.calibration.groups
    assert every.sufficient_layer == pytest.approx(rows["oracle"].exit_layer_mean)
    assert every.drafts[0].operating_point == f"{strategy}@lossless"
    row = rows[f"{strategy}@lossless"]
    assert every.drafts[0].drafted / every.tokens == pytest.approx(row.drafted_per_token)
    assert share_of(every) == pytest.approx(row.acceptance)
    for by in (KIND, POSITION):
        some = [one for one in others if one.by == by]
        assert sum(one.tokens for one in some) <= every.tokens
        assert sum(one.drafts[0].drafted for one in some) <= every.drafts[0].drafted
    positions = [one for one in others if one.by == POSITION]
    assert sum(one.tokens for one in positions) == every.tokens
    assert sum(one.drafts[0].accepted for one in positions) == every.drafts[0].accepted
    assert not [one for one in others if one.by == PROJECT], "base weights, and nothing tuned beside them"
