"""Full depth is lm-eval's own model; exits are the engine's; what cannot be right is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, HarnessError, ModelError
from tests.lm_eval.conftest import KINDS

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def make(tiny_llama: Path, datasets_cache: None) -> Callable[..., Any]:
    from harness.lm_eval import EarlyExitLM

    def lm(*given: Any, **settings: Any) -> Any:
        return EarlyExitLM(str(tiny_llama), *given, **{"energy": "none", "threads": 1, **settings})

    return lm


@pytest.fixture(scope="module")
def ours(make: Callable[..., Any], evaluate: Evaluate) -> dict[str, Any]:
    return evaluate(make(batch_size=3), *KINDS)


def answers(results: dict[str, Any], kind: str) -> list[Any]:
    """What the model answered each document, in order; a log-likelihood is a number."""
    return [sample["resps"] for sample in results["samples"][f"ours_{kind}"]]


def test_full_depth_has_the_texts_likelihoods_and_metrics_of_hf(ours: dict[str, Any], hf: dict[str, Any]) -> None:
    for kind in KINDS:
        for mine, theirs in zip(answers(ours, kind), answers(hf, kind), strict=True):
            for (one,), (other,) in zip(mine, theirs, strict=True):
                if isinstance(other, str):
                    assert one == other
                else:
                    found, wanted = (each if isinstance(each, tuple) else (each,) for each in (one, other))
                    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5, abs=1e-4)
                    assert found[1:] == wanted[1:]
    assert len({str(answer) for answer in answers(ours, "line")}) > 3
    assert ours["results"].keys() == hf["results"].keys() == {f"ours_{kind}" for kind in KINDS}
    for task, theirs in hf["results"].items():
        assert {name: value for name, value in ours["results"][task].items() if isinstance(value, float)} == {
            name: pytest.approx(value, rel=1e-5) for name, value in theirs.items() if isinstance(value, float)
        }


def test_results_carry_what_it_took(ours: dict[str, Any]) -> None:
    facts = ours["config"]["early_exit"]
    assert facts["operating_point"] == "full"
    assert facts["loglikelihood_at"] == "full depth"
    tasks = facts["tasks"]
    assert tasks.keys() == {f"ours_{kind}" for kind in KINDS}
    assert tasks["ours_long"]["generated"]["tokens"] == 7 * 9
    assert tasks["ours_long"]["generated"]["exit_layer_mean"] == 12
    assert tasks["ours_choice"]["scored"]["requests"] == 7 * 3
    for task in tasks.values():
        for spent in task.values():
            assert spent["s_per_token"] > 0
            assert spent["j_per_token"] is None  # no meter: missing, not zero
            assert spent["energy_source"] == "none"


def test_exits_generate_and_score_what_the_engine_does(
    make: Callable[..., Any], evaluate: Evaluate, ours: dict[str, Any], tiny_llama: Path
) -> None:
    """The exit's texts are those of ``harness.load``; scores are of the exit's own distribution."""
    import harness

    early = make("fixed:layer=4", batch_size=2, loglikelihood_exit=4)
    found = evaluate(early, "long", "choice")
    assert found["config"]["early_exit"]["tasks"]["ours_long"]["generated"]["exit_layer_mean"] == 4
    assert found["config"]["early_exit"]["loglikelihood_at"] == "exit after layer 4"
    assert answers(found, "long") != answers(ours, "long")
    assert answers(found, "choice") != answers(ours, "choice")

    model = harness.load(tiny_llama, threads=1)
    for sample in found["samples"]["ours_long"]:
        (context, _), *_ = sample["arguments"]
        assert sample["resps"] == [[model.generate(context, "fixed:layer=4", max_new_tokens=9, stop="never").text]]
    sample = found["samples"]["ours_choice"][0]
    (context, continuation), *_ = sample["arguments"]
    ids = early.tok_encode(context + continuation)
    place = len(early.tok_encode(context)) - 1
    trace = model.trace(ids)
    at_exit = trace[(trace.exit_layer == 4) & (trace.position >= place) & (trace.position < len(ids) - 1)]
    greedy = list(at_exit.top_token_id) == ids[place + 1 :]
    assert sample["resps"][0][0][1] == greedy


@pytest.mark.parametrize("size", [1, 3])
def test_prompts_exit_as_in_the_engine(
    make: Callable[..., Any], evaluate: Evaluate, ours: dict[str, Any], tiny_llama: Path, prompt_maps: Path, size: int
) -> None:
    import harness

    how = {"artefacts": str(prompt_maps), "prompt_exit": "layer=4:tail=4"}
    found = evaluate(make(batch_size=size, **how), "long", "choice")
    assert found["config"]["early_exit"]["prompt_exit"] == "tail:layer=4:tail=4"
    assert answers(found, "long") != answers(ours, "long")
    for mine, whole in zip(
        answers(found, "choice"), answers(ours, "choice"), strict=True
    ):  # given texts are read whole
        assert [one[0] for (one,) in mine] == pytest.approx([one[0] for (one,) in whole], rel=1e-5)
    model = harness.load(tiny_llama, threads=1, artefacts=prompt_maps)
    for sample in found["samples"]["ours_long"]:
        (context, _), *_ = sample["arguments"]
        made = model.generate(context, max_new_tokens=9, stop="never", prompt_exit="layer=4:tail=4")
        assert sample["resps"] == [[made.text]]
        assert made.work.prompt_layers_skipped == max(0, made.prompt_tokens - 8) * 8
    with pytest.raises(HarnessError, match="lossless decoding yields full depth's tokens"):
        make("fixed:layer=4", decode="lossless", **how).point  # noqa: B018


def test_a_text_longer_than_the_positions_is_scored_in_windows_as_by_hf(
    make: Callable[..., Any], tiny_llama: Path, documents: list[str]
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = "".join(documents)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0, ("long", 0, 1))]
    theirs = HFLM(str(tiny_llama), batch_size=2, device="cpu", dtype="float32")
    mine = make(batch_size=2)
    assert len(mine.tok_encode(text)) > 2 * mine.max_length
    assert mine.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(
        theirs.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5
    )


def test_conversations_are_written_by_the_template_or_refused(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="2 operating points were asked for"):
        _ = make("fixed:layer=4,6").point
    lm = make()
    asked = [{"role": "system", "content": "Go on."}, {"role": "user", "content": "def f("}]
    for template, words in (
        (None, "has no default chat template"),
        ({"one": "{{ messages }}", "other": "{{ messages }}"}, "has no default chat template"),
        ("{{ raise_exception('never') }}", r"fails: TemplateError: never\. Omit --apply-chat-template"),
    ):
        monkeypatch.setattr(lm.tokenizer, "chat_template", template)
        with pytest.raises(ModelError, match=words):
            lm.apply_chat_template(asked)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    monkeypatch.setattr(lm.tokenizer, "chat_template", f"{refusing}{{{{ messages[0]['content'] }}}}")
    assert [lm.apply_chat_template(asked) for _ in range(2)] == ["def f("] * 2
    assert caplog.text.count("takes no system message") == 1
