"""lm-eval's own client of completions, at a running server, scores and generates what ``harness lm-eval`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.serving.config import ServeConfig
from tests.lm_eval.conftest import KINDS
from tests.serving.conftest import Running, serving


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[Running]:
    """With exits and drafts, and prompts in small pieces: none of these may show in what is scored."""
    given = {"model": str(tiny_llama), "threads": 1, "energy": "none", "weights_format": "float32"}
    with serving(
        ServeConfig.build({**given, "strategies": ("fixed:layer=4",), "prefill_tokens": 16, "max_new_tokens": 16})
    ) as running:
        yield running


@pytest.fixture(scope="module")
def ours(tiny_llama: Path, evaluate: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    from harness.lm_eval import EarlyExitLM

    return evaluate(EarlyExitLM(str(tiny_llama), energy="none", threads=1), *KINDS)


@pytest.mark.parametrize("tokenized", [True, False], ids=["token ids", "text"])
def test_lm_eval_over_http_has_the_answers_of_harness_lm_eval(
    server: Running, ours: dict[str, Any], evaluate: Callable[..., Any], tiny_llama: Path, tokenized: bool
) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    client = LocalCompletionsAPI(
        model=server.service.model_name, base_url=f"{server.url}/v1/completions", tokenizer_backend="huggingface",
        tokenizer=str(tiny_llama), tokenized_requests=tokenized, batch_size=4, max_retries=1,
        max_length=server.service.max_prompt_tokens,
    )  # fmt: skip
    kinds = ("line", "choice", "whole") if tokenized else ("line", "choice")
    found = evaluate(client, *kinds)
    for kind in kinds:
        wanted = {name: value for name, value in ours["results"][f"ours_{kind}"].items() if isinstance(value, float)}
        measured = found["results"][f"ours_{kind}"]
        assert {name: measured[name] for name in wanted} == {
            name: pytest.approx(value, rel=1e-4) for name, value in wanted.items()
        }
        for one, other in zip(found["samples"][f"ours_{kind}"], ours["samples"][f"ours_{kind}"], strict=True):
            for mine, theirs in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
                if isinstance(theirs, tuple | list):
                    assert float(mine[0]) == pytest.approx(float(theirs[0]), rel=1e-4, abs=1e-3)
                    assert mine[1] == theirs[1], "whether it is what would be generated"
                elif kind == "line":
                    assert mine == theirs
    scores = {float(resp[0]) for sample in found["samples"]["ours_choice"] for resp in sample["filtered_resps"]}
    assert len(scores) > len(found["samples"]["ours_choice"])
    assert max(scores) < 0, "nothing is certain"
