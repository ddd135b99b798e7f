"""Generation settings of a task: each is refused unless its value changes nothing of a greedy text."""

from __future__ import annotations

import pytest

from harness.errors import ConfigError
from harness.lm_eval.requests import NEUTRAL, read_generation

GREEDY = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "top_p": 0.9, "max_gen_toks": 5}


def read(**settings: object) -> tuple[tuple[str, ...], int]:
    return read_generation("odd", GREEDY | settings, 256, "<eos>")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 1),
        ("num_return_sequences", 1),
        ("repetition_penalty", 1.0),
        ("length_penalty", 1.0),
        ("no_repeat_ngram_size", 0),
        ("min_new_tokens", 0),
        ("presence_penalty", 0.0),
        ("min_length", None),
        ("early_stopping", False),
        ("renormalize_logits", None),  # in no list
    ],
)
def test_what_changes_nothing_is_taken(name: str, value: object) -> None:
    assert read(**{name: value}) == (("\n", "<eos>"), 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 2),
        ("num_beams", 0),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1.2),
        ("no_repeat_ngram_size", 1),
        ("encoder_no_repeat_ngram_size", 1),
        ("min_new_tokens", 1),
        ("min_length", 1.0),
        ("presence_penalty", 1),
        ("penalty_alpha", 1),
        ("early_stopping", True),
        ("renormalize_logits", True),
        ("renormalize_logits", 0),
        ("suppress_tokens", []),
        ("stop_strings", "end"),
        ("some_new_setting", 1),
        *((name, True) for name in sorted(NEUTRAL)),  # equal to 1 in Python
    ],
)
def test_what_greedy_decoding_has_not_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"the task odd sets {name} in its generation_kwargs"):
        read(**{name: value})


def test_a_refusal_names_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"sets min_new_tokens, num_beams in its generation_kwargs"):
        read(num_beams=4, min_new_tokens=1, repetition_penalty=1)
