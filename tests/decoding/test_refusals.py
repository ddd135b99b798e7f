"""What the engine and the families refuse, in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.contracts import ExitView, Strategy
from harness.decoding.families import check_config, position_limit
from harness.errors import ModelError, OptionError
from harness.registry import FAMILIES, KV_POLICIES
from strategies.full import Full


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_an_empty_prompt(llama: Any, kv: str) -> None:
    with pytest.raises(ModelError, match="no tokens"):
        llama.engine.decode([[1, 2], []], Full(), kv=kv, max_new_tokens=[2, 2])


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_prompt_and_completion_beyond_the_positions(llama: Any, kv: str) -> None:
    with pytest.raises(ModelError, match="need 161 positions, llama has 160"):
        llama.engine.decode([[1, 2], [3] * 158], Full(), kv=kv, max_new_tokens=[2, 3])
    with pytest.raises(ModelError, match="need 161 positions"):
        llama.engine.replay([[3] * 158], [[6, 6, 6]], kv=kv, max_new_tokens=[3])
    assert len(llama.engine.decode([[3] * 158], Full(), kv=kv, max_new_tokens=[2])[0].token_ids) == 2


def test_limits_that_are_not_one_per_row(llama: Any) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        llama.engine.decode([[1], [2]], Full(), kv="none", max_new_tokens=[2])


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


@pytest.mark.parametrize("family", FAMILIES.names())
def test_supported_families_pass(family: str) -> None:
    check_config(config(family))


def test_other_families_are_refused_with_a_list() -> None:
    with pytest.raises(ModelError, match=r"'bloom' is not supported\. Supported: gpt2, gpt_neox, llama, mistral, opt"):
        check_config(config("bloom"))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_scaling_that_moves_with_the_length_is_refused(kind: str) -> None:
    crooked = config("llama")
    crooked.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ModelError, match=f"'{kind}' changes with the sequence length"):
        check_config(crooked)


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_rotary_scaling_that_stands_still_passes(kind: str) -> None:
    steady = config("llama")
    steady.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    check_config(steady)


@pytest.mark.parametrize(
    ("family", "changes", "limit"),
    [
        ("llama", {"max_position_embeddings": 777}, 777),
        ("gpt2", {"n_positions": 555}, 555),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("mistral", {"max_position_embeddings": 8192, "sliding_window": 512}, 512),
        ("mistral", {"max_position_embeddings": 256, "sliding_window": 512}, 256),
        ("mistral", {"max_position_embeddings": 8192, "sliding_window": None}, 8192),
        ("qwen2", {"max_position_embeddings": 8192, "sliding_window": 512, "use_sliding_window": False}, 8192),
        ("qwen2", {"max_position_embeddings": 8192, "sliding_window": 512, "use_sliding_window": True,
                   "max_window_layers": 2}, 512),
        ("qwen3", {"max_position_embeddings": 8192, "sliding_window": 512, "use_sliding_window": True,
                   "max_window_layers": 0}, 512),
        ("qwen2", {"max_position_embeddings": 8192, "sliding_window": 512, "use_sliding_window": True,
                   "max_window_layers": 40}, 8192),  # no layer slides
    ],
)  # fmt: skip
def test_a_sliding_window_limits_the_positions(family: str, changes: dict[str, Any], limit: int) -> None:
    assert position_limit(config(family, **changes)) == limit


def test_inside_the_window_sliding_attention_is_full_attention(make_case: Any, greedy: Any) -> None:
    case = make_case("mistral", sliding_window=32)
    prompt = list(range(3, 23))
    done = case.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[12])[0]
    assert done.token_ids == greedy(case.reference, prompt, 12)
