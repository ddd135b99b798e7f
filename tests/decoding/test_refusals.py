"""What the engine and the families refuse, in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.contracts import ExitView, Lossless, Strategy
from harness.decoding.exits import RowExits
from harness.decoding.families import check_config, position_limit
from harness.errors import ModelError, OptionError
from harness.registry import FAMILIES, KV_POLICIES
from strategies.full import Full


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_what_the_engine_cannot_decode_is_refused(llama: Any, kv: str) -> None:
    engine = llama.engine
    for prompts, limits, said in (
        ([[1, 2], []], [2, 2], "no tokens"),
        ([[1, 2], [3] * 158], [2, 3], "need 161 positions, llama has 160"),
        ([[1, 2], [3, -1]], [2, 2], r"^token id -1 is outside the vocabulary of llama \(size 97\)"),
        ([[1, 2], [3, 10**30]], [2, 2], f"^token id {10**30} is outside"),
    ):
        with pytest.raises(ModelError, match=said):
            engine.decode(prompts, Full(), kv=kv, max_new_tokens=limits)
    with pytest.raises(ModelError, match="need 161 positions"):
        engine.replay([[3] * 158], [[6, 6, 6]], kv=kv, max_new_tokens=[3])
    with pytest.raises(ModelError, match="positions"):
        engine.open(1, 10**6, kv, RowExits(engine.info, "cpu", []), [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        engine.decode([[1], [2]], Full(), kv=kv, max_new_tokens=[2])
    if kv != "recompute":
        with pytest.raises(OptionError, match=rf"under --kv {kv} none do. Use --kv recompute, or --decode lossy"):
            engine.decode([[1]], Full(), kv=kv, max_new_tokens=[3], lossless=Lossless())
    assert len(engine.decode([[3] * 158], Full(), kv=kv, max_new_tokens=[2])[0].token_ids) == 2


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        pytest.param(lambda rows: torch.zeros(rows + 1, dtype=torch.bool), r"shape \(4,\)", id="too many"),
        pytest.param(lambda rows: torch.zeros(rows, 1, dtype=torch.bool), r"shape \(3, 1\)", id="a column"),
        pytest.param(lambda rows: torch.tensor(False), r"shape \(\)", id="a scalar"),
        pytest.param(lambda rows: torch.full((rows,), 0.7), "torch.float32", id="scores"),
        pytest.param(lambda rows: [True] * rows, "list", id="a list"),
    ],
)
def test_an_answer_that_is_not_one_bool_per_row(llama: Any, answer: Any, what: str, prompts: list[list[int]]) -> None:
    class Crooked(Strategy):
        def should_exit(self, view: ExitView) -> torch.Tensor:
            return answer(len(view.rows))

    with pytest.raises(OptionError, match=rf"Crooked\.should_exit returned .*{what}.* at layer 1.*\(3,\)"):
        llama.engine.decode(prompts, Crooked(), kv="propagate", max_new_tokens=[2] * 3)


# ------------------------------------------------------------------------------------ families


def config(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **changes)


def test_what_a_family_reads_exactly_passes_and_no_more() -> None:
    for family in FAMILIES.names():
        check_config(config(family))
    with pytest.raises(ModelError, match=r"'bloom' is not supported\. Supported: gpt2, gpt_neox, llama, mistral, opt"):
        check_config(config("bloom"))
    llama = config("llama")
    for kind in ("default", "linear", "llama3", "yarn", "dynamic", "longrope"):
        llama.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
        if kind in ("dynamic", "longrope"):
            with pytest.raises(ModelError, match=f"'{kind}' changes with the sequence length"):
                check_config(llama)
        else:
            check_config(llama)


SLIDES = {"max_position_embeddings": 8192, "sliding_window": 512, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("family", "changes", "limit"),
    [
        ("llama", {"max_position_embeddings": 777}, 777),
        ("gpt2", {"n_positions": 555}, 555),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("mistral", {"max_position_embeddings": 8192, "sliding_window": 512}, 512),
        ("mistral", {"max_position_embeddings": 256, "sliding_window": 512}, 256),
        ("mistral", {"max_position_embeddings": 8192, "sliding_window": None}, 8192),
        ("qwen2", SLIDES | {"use_sliding_window": False}, 8192),
        ("qwen2", SLIDES | {"max_window_layers": 2}, 512),
        ("qwen3", SLIDES | {"max_window_layers": 0}, 512),
        ("qwen2", SLIDES | {"max_window_layers": 40}, 8192),  # no layer slides
    ],
)
def test_a_sliding_window_limits_the_positions(family: str, changes: dict[str, Any], limit: int) -> None:
    assert position_limit(config(family, **changes)) == limit


def test_inside_the_window_sliding_attention_is_full_attention(make_case: Any, greedy: Any) -> None:
    case = make_case("mistral", sliding_window=32)
    prompt = list(range(3, 23))
    done = case.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[12])[0]
    assert done.token_ids == greedy(case.reference, prompt, 12)
