"""Options of strategies that read a head, and the artefacts of heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.contracts import ModelRequest
from harness.errors import ArtefactError, HarnessError, OptionError
from harness.models.artefacts import write_artefact
from harness.models.model import resolve
from harness.models.trained import find, require


def build(text: str) -> Any:
    (spec,) = parse_strategies(text)
    return build_strategy(spec)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("confidence:head=shortlst", "unknown head 'shortlst'. Did you mean 'shortlist'?"),
        ("confidence:head=nothing", "Known: full, int8, lowrank, shortlist"),
        ("margin:head=int8/3", "the head int8 has no size"),
        ("confidence:head=lowrank/0", "'0' is no size: write NAME/SIZE with a whole number above 0"),
        ("confidence:token=any", "is not allowed"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(HarnessError) as refused:
        build(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tokens_of_no_cheap_head_are_refused(tiny_llama: Path) -> None:
    info = resolve(ModelRequest(str(tiny_llama))).info
    with pytest.raises(OptionError, match="head=full has none"):
        build("confidence:token=head").exit_points(info)


def test_an_artefact_belongs_to_weights_and_exit_head(tiny_llama: Path, tmp_path: Path) -> None:
    info = replace(resolve(ModelRequest(str(tiny_llama))).info, artefacts=(str(tmp_path),))
    with pytest.raises(ArtefactError, match=r"there is no shortlist\.json for") as missing:
        build("confidence:head=shortlist").exit_points(info)
    assert missing.value.commands == (f"harness train shortlist --model {tiny_llama}",)
    facts = {"base_fingerprint": info.base_fingerprint, "model": info.name}
    ids = {"token_ids": torch.arange(5).int()}
    made = write_artefact(tmp_path / "shortlist.json", "shortlist", ids, facts)
    strategy = build("confidence:head=shortlist")
    assert strategy.exit_points(info) == info.exit_points
    assert strategy.artefacts(info) == made.hashes()
    assert require(find("shortlist", replace(info, fingerprint="tuned"))).sha256 == made.sha256
    with pytest.raises(ArtefactError, match="is of base weights"):
        require(find("shortlist", replace(info, base_fingerprint="another")))
    write_artefact(tmp_path / "lowrank.json", "lowrank", ids, facts | {"exit_head": "shortcut:1"})
    with pytest.raises(ArtefactError, match="is of exit head shortcut:1, and these are shared"):
        require(find("lowrank", info))
