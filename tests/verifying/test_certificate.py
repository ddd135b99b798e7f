"""Tokens that must be the same: every difference is found, told apart by its gap, and decides the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Sample
from harness.decoding import loop
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.loop import OpenBatch
from harness.decoding.packing import pack
from harness.decoding.prompt_exits import ShallowPrompt
from harness.decoding.teacher_forcing import FLOAT32_ERROR
from harness.decoding.weights.fp16 import Fp16
from harness.records.certificate import Certificate, Claim, TokenDifference
from harness.registry import WEIGHTS_FORMATS
from harness.verifying.certify import verdict
from harness.verifying.claims import Completion, Reference, decode, reference_of, verify_format, verify_rows
from tests.crossing import in_turn

Command = Callable[..., Any]
FORMATS = {name for name in WEIGHTS_FORMATS.names() if WEIGHTS_FORMATS.load(name)().obstacle("cpu") is None}
NEAR_EXACT = {name for name in FORMATS if WEIGHTS_FORMATS.load(name).facts.accuracy != "lossy"}


@pytest.fixture
def verify(cli: Command, tiny_llama: Path, rows_file: Path) -> Command:
    given = ("--model", tiny_llama, "--source", rows_file, "--prompts", 4, "--max-new-tokens", 6, "--threads", 1)
    return lambda *arguments: cli("verify", *given, *arguments)


@pytest.fixture
def broken_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that leaves out the last inputs of every row."""
    pack = Fp16.pack

    def cut(self: Fp16, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        weight = weight.clone()
        weight[:, -weight.shape[1] // 4 :] = 0
        return pack(self, weight, bias)

    monkeypatch.setattr(Fp16, "pack", cut)


def test_near_exact_formats_are_certified_without_being_named(verify: Command, tmp_path: Path) -> None:
    ran = verify("--prompts", 3, "--json", tmp_path / "certificate.json")
    assert ran.code == 0, ran.err
    found = Certificate.model_validate_json((tmp_path / "certificate.json").read_bytes())
    assert {claim.weights_format for claim in found.claims} == NEAR_EXACT
    assert [claim.batch_size for claim in found.claims] == [None, 1, 1, 3, 3, 3] * len(NEAR_EXACT)
    # what the run that names nothing decodes losslessly, and a model has without training
    drafting = ["full@lossless+lookup", "full@lossless+suffix"]
    said = [claim.what for claim in found.claims if "lossless" in claim.what]
    assert said == [*drafting, *(f"{one}, batches of 3" for one in drafting)] * len(NEAR_EXACT)
    assert all(claim.places == found.prompts * 6 for claim in found.claims)
    assert found.defects == 0
    assert verdict(found) in ran.out
    assert "exact at" in ran.out


def test_lossy_formats_are_counted_and_their_batches_judged(verify: Command, tmp_path: Path) -> None:
    lossy = sorted(FORMATS - NEAR_EXACT)
    ran = verify(
        "--weights-format", ",".join(lossy), "--batch-size", "1,2", "--strategy", "full", "--json", tmp_path / "c.json",
        "--prompts", 2,
    )  # fmt: skip
    found = Certificate.model_validate_json((tmp_path / "c.json").read_bytes())
    assert ran.code == (1 if found.defects else 0)
    for claim in found.claims:
        invariant = WEIGHTS_FORMATS.load(claim.weights_format).facts.invariant
        assert claim.judged == (invariant and claim.batch_size == 2)
    assert not [claim for claim in found.claims if claim.defects]
    ran = verify("--weights-format", "fp16", "--batch-size", 1, "--strategy", "random:probability=0")
    assert (ran.code, "no drafts" in ran.out) == (0, True)  # what drafts nothing is not said to hold


@pytest.mark.usefixtures("broken_fp16")
def test_a_wrong_kernel_is_a_defect(verify: Command, tmp_path: Path) -> None:
    ran = verify(
        "--weights-format", "fp16", "--json", tmp_path / "c.json", "--batch-size", 1, "--strategy", "full"
    )  # fmt: skip
    assert ran.code == 1, ran.err
    (claim,) = json.loads((tmp_path / "c.json").read_text())["claims"]
    widest = max(claim["differences"], key=lambda one: abs(one["logit"] - one["other_logit"]))
    assert abs(widest["logit"] - widest["other_logit"]) > widest["bound"]
    assert "not exact" in ran.out
    assert "broken" in ran.out
    assert widest["sample_id"][:6] in ran.out


def test_deepened_prompts_are_held_against_full_depth(
    verify: Command, prompt_maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        *("--weights-format", "float32", "--batch-size", 1, "--strategy", "fixed:layer=4", "--artefacts", prompt_maps),
        *("--prompt-exit", "layer=4:tail=8", "--json", tmp_path / "c.json"),
    )
    ran = verify(*asked)
    assert ran.code == 0, ran.err
    (_, claim, _) = Certificate.model_validate_json((tmp_path / "c.json").read_bytes()).claims
    assert (claim.what, claim.judged, claim.places) == ("prompts of tail:layer=4:tail=8, deepened", True, 4 * 6)
    monkeypatch.setattr(loop, "deepen", lambda *given: _forget(given[-2]))
    assert verify(*asked).code == 1
    assert "cannot exit at layer=12" in verify("--prompt-exit", "layer=12", "--artefacts", prompt_maps).err


def _forget(prompt: ShallowPrompt) -> None:
    """Say that it is exact, and leave what maps made."""
    prompt.exact, prompt.states = len(prompt.wanted), prompt.states[:0]


DRAFTING = ("--strategy", "fixed:layer=4", "--strategy", "random:probability=0.6@lossless+lookup", "--draft-max", 3)


def test_lossless_decoding_is_held_against_full_depth(verify: Command, tmp_path: Path) -> None:
    ran = verify("--weights-format", "fp16", *DRAFTING, "--json", tmp_path / "c.json")
    assert ran.code == 0, ran.err
    claims = Certificate.model_validate_json((tmp_path / "c.json").read_bytes()).claims
    first, second = "fixed:layer=4@lossless", "random:probability=0.6@lossless+lookup"
    assert [(claim.batch_size, claim.what.partition(",")[0]) for claim in claims if "lossless" in claim.what] == [
        (1, first), (1, second), (3, first), (3, second),
    ]  # fmt: skip
    assert all(claim.judged and claim.places == 4 * 6 and not claim.differences for claim in claims)
    drafting = [claim for claim in claims if "lossless" in claim.what]
    assert all(0 <= claim.accepted < claim.drafts for claim in drafting)
    assert all((claim.drafts, claim.accepted) == (None, None) for claim in claims if claim not in drafting)
    assert f"{drafting[0].accepted}/{drafting[0].drafts}" in ran.out
    assert "exact at all 144 places" in ran.out


@pytest.mark.slow
@in_turn(family=["llama", "qwen3", "opt", "gpt2", "gpt_neox"], weights_format=sorted(FORMATS))
def test_every_family_is_lossless_and_every_format(
    cli: Command, make_model: Callable[..., Path], rows_file: Path, family: str, weights_format: str, tmp_path: Path
) -> None:
    heads = {"num_key_value_heads": 2} if family == "qwen3" else {}
    ran = cli(
        "verify", "--model", make_model(family, **heads), "--source", rows_file, "--prompts", 3, "--max-new-tokens", 8,
        "--threads", 1, "--weights-format", weights_format, *DRAFTING, "--json", tmp_path / "c.json",
    )  # fmt: skip
    assert ran.code == 0, ran.out
    claims = Certificate.model_validate_json((tmp_path / "c.json").read_bytes()).claims
    assert sum("lossless" in claim.what for claim in claims) == 4


@pytest.mark.model
@pytest.mark.slow
def test_what_was_trained_drafts_losslessly(cli: Command, tmp_path: Path) -> None:
    strategies = ("classifier:threshold=0.8", "rl:threshold=0.3", "hash", "predictor", "sec")
    named = [word for strategy in strategies for word in ("--strategy", strategy)]
    ran = cli(
        "verify", *named, "--artefacts", "smollm2-135m", "--task", "py150", "--prompts", 2, "--max-new-tokens", 5,
        "--batch-size", 2, "--weights-format", "fp16", "--json", tmp_path / "c.json",
    )  # fmt: skip
    assert ran.code == 0, ran.out
    claims = Certificate.model_validate_json((tmp_path / "c.json").read_bytes()).claims
    drafting = [claim for claim in claims if claim.drafts is not None]
    assert len(drafting) == len(strategies)
    assert any(claim.drafts for claim in drafting)


def test_a_verification_that_believes_every_draft_is_a_defect(
    verify: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = OpenBatch._accept

    def believing(self: OpenBatch, row: int, said: Any, *seen: Any) -> int:
        draft = self._generations[row].draft
        believed = [*((token, logit) for token, (_, logit) in zip(draft, said, strict=False)), *said[len(draft) :]]
        return accept(self, row, believed, *seen)

    monkeypatch.setattr(OpenBatch, "_accept", believing)
    ran = verify("--weights-format", "fp16", "--batch-size", 1, *DRAFTING, "--json", tmp_path / "c.json")
    assert ran.code == 1, ran.err
    claims = Certificate.model_validate_json((tmp_path / "c.json").read_bytes()).claims
    assert [bool(claim.defects) for claim in claims] == [False, True, True]


def test_bad_input_is_one_line(verify: Command) -> None:
    for arguments, said in (
        (("--weights-format", "fp61"), "unknown weights format 'fp61'. Did you mean 'fp16'?"),
        (("--weights-format", ""), "--weights-format is empty"),
        (("--batch-size", "1,x"), "'x' is no number of rows from 1 to 64"),
        (("--batch-size", "0"), "'0' is no number of rows"),
        (("--prompts", 1, "--batch-size", "1,3"), "--batch-size 3: one prompt has no other beside it."),
        (("--json", "no/such/folder/c.json"), "give a file in a folder that exists"),
        (("--prompts", 0), "--prompts 0"),
        (("--strategy", "fixed:layer=4@lossles"), "Did you mean 'lossless'"),
        (("--strategy", "fixed:layer=4@lossy"), "a lossy strategy's tokens are its own. Write fixed:layer=4@lossless."),
    ):
        ran = verify(*arguments)
        assert ran.code == 2
        assert said in ran.error


def test_a_format_this_machine_lacks_is_refused_and_left_out(verify: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fp16, "obstacle", lambda self, device: "nothing compiles here")
    assert (
        "--weights-format fp16 cannot be used here: nothing compiles here" in verify("--weights-format", "fp16").error
    )
    ran = verify("--prompts", 1, "--batch-size", 1)
    assert ran.code == 0
    assert "fp16" not in ran.out


@pytest.mark.parametrize(
    ("given", "sizes"),
    [(("--batch-size", "1,3,4,64"), [3, 4]), (("--prompts", 2, "--batch-size", 64), [2])],
)
def test_no_batch_is_certified_of_more_rows_than_were_decoded_together(
    verify: Command, tmp_path: Path, given: tuple[Any, ...], sizes: list[int]
) -> None:
    ran = verify("--weights-format", "fp16", "--strategy", "full", *given, "--json", tmp_path / "c.json")
    assert ran.code == 0, ran.err
    claims = Certificate.model_validate_json((tmp_path / "c.json").read_bytes()).claims[1:]
    assert [(claim.batch_size, claim.what) for claim in claims] == [
        (size, f"batches of {size} as alone") for size in sizes
    ]


@pytest.fixture
def written(llama: Any, samples: list[Sample]) -> list[Completion]:
    return decode(llama.engine, samples, 1, frozenset(), lambda done: None)


@pytest.fixture
def samples(prompts: list[list[int]]) -> list[Sample]:
    return [Sample(f"s{number}", tuple(ids), "", (), 8) for number, ids in enumerate(prompts)]


def test_every_place_is_compared_and_judged_by_the_reference_s_gap(llama: Any, written: list[Completion]) -> None:
    """Another place's token put in: found there and nowhere else, with float32's own logits."""
    one = written[0]
    other = (one.tokens[3] + 1) % llama.info.vocab_size
    claim = verify_format("float32", llama.engine, llama.engine, written, 0, lambda done: None)
    assert (claim.places, claim.differences) == (sum(len(each.tokens) for each in written), ())
    (found,) = Reference(llama.engine, 1e-6, 0).differences(one, [(4, other)])
    sequence = [*one.sample.prompt_ids, *one.tokens[:3]]
    with torch.inference_mode():
        logits = llama.engine.backbone.logits(llama.engine.read(sequence, [llama.info.num_layers])[0])[-1]
    assert (found.sample_id, found.place, found.token, found.other) == ("s0", 4, one.tokens[3], other)
    assert found.logit == pytest.approx(float(logits.max()), abs=1e-4)
    assert found.other_logit == pytest.approx(float(logits[other]), abs=1e-4)
    assert not found.near_tie


def test_a_near_tie_is_none_of_its_neighbours_business(llama: Any, written: list[Completion]) -> None:
    """Two tokens with one row of the LM head between them tie exactly; whichever comes is right."""
    token = written[0].tokens[2]
    twin = next(number for number in range(llama.info.vocab_size) if number not in written[0].tokens)
    weight = llama.engine.backbone.lm_head.weight.clone()
    weight[twin] = weight[token] * (1 + 1e-6)
    engine = Engine(replace(llama.engine.backbone, lm_head=Linear(weight)), llama.info)
    (found,) = Reference(engine, 1e-3, 0).differences(written[0], [(3, twin)])
    assert found.gap < 1e-4 < found.bound
    assert found.near_tie


def test_a_batch_is_compared_up_to_its_first_difference(llama: Any, written: list[Completion]) -> None:
    tokens = list(written[1].tokens)
    tokens[2], tokens[5] = (tokens[2] + 1) % 97, (tokens[5] + 1) % 97
    batched = [written[0], Completion(written[1].sample, tuple(tokens)), written[2]]
    claim = verify_rows("float32", llama.engine, written, batched, 3, 0)
    assert [(one.sample_id, one.place) for one in claim.differences] == [("s1", 3)]
    assert claim.places == len(written[0].tokens) + 3 + len(written[2].tokens)
    assert len(claim.defects) == 1


@pytest.mark.parametrize("cut", [True, False])
def test_a_completion_that_ends_too_early_or_too_late_is_a_defect(
    llama: Any, written: list[Completion], cut: bool
) -> None:
    long, short = written, [replace(written[0], tokens=written[0].tokens[:5]), *written[1:]]
    alone, batched = (long, short) if cut else (short, long)
    (found,) = verify_rows("float32", llama.engine, alone, batched, 3, 0).defects
    assert (found.place, found.gap) == (6, None)
    assert (found.token, found.other) == ((long[0].tokens[5], None) if cut else (None, long[0].tokens[5]))


@pytest.mark.parametrize("compiled", [True, False])
def test_only_compiled_products_are_held_to_the_same_bits_in_a_batch(
    llama: Any, written: list[Completion], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off the CPU fp16 is multiplied by torch, whose sums are of another order for another number of rows."""
    if not compiled:
        monkeypatch.setattr(Fp16, "pack", lambda self, weight, bias: Linear(weight, bias).to(torch.float16))
    engine = Engine(pack(llama.engine.backbone, "fp16", "cpu"), replace(llama.info, weights_format="fp16"))
    facts, reference = reference_of("fp16", engine, 0)
    expected = Reference(engine, FLOAT32_ERROR if compiled else facts.relative_error, 0)
    (found,), (same,) = (one.differences(written[0], [(1, 0)]) for one in (reference, expected))
    assert facts.invariant == compiled
    assert found.bound == same.bound


def claim(*gaps: float, judged: bool = True, places: int = 100) -> Claim:
    return Claim(
        weights_format="fp16", accuracy="near-exact", what="tokens", batch_size=None, judged=judged, places=places,
        differences=tuple(
            TokenDifference(sample_id="s", place=1, token=1, other=2, logit=gap, other_logit=0, bound=1) for gap in gaps
        ),
    )  # fmt: skip


def test_near_ties_are_taken_out_of_the_share() -> None:
    found = claim(0.5, 1.0, 1.5)
    assert (found.near_ties, len(found.beyond), len(found.defects)) == (2, 1, 1)
    assert found.share == pytest.approx(97 / 98)
    assert claim(2.0, judged=False).defects == ()
    assert claim(0.1, places=1).share is None
    found = claim(0.1, 0.5, judged=False, places=10)  # what is counted has the plain share
    assert (found.near_ties, found.beyond, found.share) == (2, (), 0.8)
    assert claim(judged=False, places=0).share is None
