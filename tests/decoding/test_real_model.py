"""The default model's real weights: full depth is ``generate``, and exits decode alike with a cache and without."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness.contracts import Lossless
from harness.decoding.drafts.recycling import Recycling
from strategies.fixed import Fixed
from strategies.full import Full

pytestmark = pytest.mark.model

CODE = {
    "python": 'def load_settings(path):\n    """Return the settings of a JSON file."""\n    with open(path) as file:\n',
    "java": "public class Rectangle {\n    private final double width;\n\n    public double area() {\n        ",
}


def test_never_exiting_is_generate(smollm2: Any, greedy: Callable[..., list[int]]) -> None:
    """Of two prompts at once."""
    prompts = [smollm2.tokenizer.encode(text) for text in CODE.values()]
    for prompt, done in zip(
        prompts, smollm2.engine.decode(prompts, Full(), kv="propagate", max_new_tokens=[16, 16]), strict=True
    ):
        assert len(set(done.token_ids)) > 5
        assert done.token_ids == greedy(smollm2.module, prompt, 16)


def test_recompute_decodes_as_no_cache_does(smollm2: Any) -> None:
    prompt = smollm2.tokenizer.encode(CODE["java"])
    done = smollm2.engine.decode([prompt], Fixed(layer=22), kv="recompute", max_new_tokens=[8])[0]
    plain = smollm2.engine.replay([prompt], [done.exit_layers], kv="none", max_new_tokens=[8])[0]
    assert done.exit_layers == [30] + [22] * 7
    assert done.token_ids == plain.token_ids


def test_recycled_drafts_stand_at_times_and_change_nothing(smollm2: Any) -> None:
    prompts = [smollm2.tokenizer.encode(text) for text in CODE.values()]
    full = smollm2.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[24, 24])
    made = smollm2.engine.decode(
        prompts, Full(), kv="recompute", max_new_tokens=[24, 24], lossless=Lossless(sources=(Recycling(),))
    )
    assert [one.token_ids for one in made] == [one.token_ids for one in full]
    assert sum(sum(one.accepted) for one in made) > 2
    assert sum(one.verifications for one in made) < 46 - 2


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_prompt_meets_no_memory_anew(smollm2: Any) -> None:
    """What its layers free is taken again: memory that comes from the system comes page by page, 74,000 of them."""
    prompt = smollm2.tokenizer.encode(CODE["python"] * 12)
    assert len(prompt) > 300
    pages = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        smollm2.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[1])
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert pages[1] < 10_000
