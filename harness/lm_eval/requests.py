"""Generation requests of lm-eval: token ids, stop texts and a limit. What greedy decoding cannot do is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.contracts import StopRule, Tokenizer
from harness.errors import ConfigError

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit of new tokens, the first that is given counts."""
OF_SAMPLING = frozenset({"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed"})
"""Settings of sampling, which say nothing where it is off."""
NEUTRAL: Mapping[str, int] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "length_penalty": 1,
    "guidance_scale": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "penalty_alpha": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_tokens": 0,
}
"""Values at which settings of sampling change nothing in greedy decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One text to generate.

    Attributes:
        task: lm-eval's name of its task.
        sample_id: which of the task's: the document's number, and its request's where it has several.
        prompt_ids: tokens of the context, as many of its last ones as leave room for the new ones.
        until: texts that end it, none empty.
        limit: new tokens at most.
        instance: lm-eval's request.
    """

    task: str
    sample_id: str
    prompt_ids: tuple[int, ...]
    until: tuple[str, ...]
    limit: int
    instance: Any


def read_generation(task: str, settings: Mapping[str, Any], limit: int, end: str | None) -> tuple[tuple[str, ...], int]:
    """Return the stop texts and the limit of new tokens that a request's generation settings say.

    Args:
        task: whose request it is.
        settings: as the task has them.
        limit: where they name none.
        end: text of the model's end token, which always ends a completion.

    Raises:
        ConfigError: they ask for sampling, or for something else that greedy decoding has not.
    """
    if settings.get("do_sample") or (settings.get("do_sample") is None and float(settings.get("temperature") or 0) > 0):
        raise ConfigError(
            f"the task {task} samples (do_sample or a temperature above 0), and early-exit decoding is greedy. "
            "Set do_sample: false in its generation_kwargs, or omit it."
        )
    strange = settings.keys() - OF_SAMPLING - {*LIMITS, "until"}
    if changing := [name for name in sorted(strange) if _changes(name, settings[name])]:
        raise ConfigError(
            f"the task {task} sets {', '.join(changing)} in its generation_kwargs, which greedy decoding has not. "
            "Remove it there, or omit the task."
        )
    given = settings.get("until") or []
    until = [given] if isinstance(given, str) else list(given)
    found = next((settings[name] for name in LIMITS if settings.get(name) is not None), limit)
    return tuple(dict.fromkeys(text for text in [*until, end] if text)), int(found)


def _changes(name: str, value: object) -> bool:
    """Return whether a setting alters what is generated. ``True`` is no 1 here."""
    if isinstance(value, bool) or value is None:
        return value is True
    return value != NEUTRAL.get(name)


def stop_rule(tokenizer: Tokenizer, until: Sequence[str]) -> StopRule:
    """Return a rule that is true once one of some texts is complete in what the tokens spell.

    The text of all tokens is searched, but only where some token holds a character that can complete one, or part of a
    character; one look-up per token tells.
    """
    lasts = {text[-1] for text in until} | {"\ufffd"}
    suspects: dict[int, bool] = {}

    def is_over(token_ids: Sequence[int]) -> bool:
        suspicious = False
        for token_id in token_ids:
            known = suspects.get(token_id)
            if known is None:
                known = suspects[token_id] = not lasts.isdisjoint(tokenizer.decode([token_id]))
            suspicious = suspicious or known
        if not suspicious:
            return False
        text = tokenizer.decode(token_ids)
        return any(stop in text for stop in until)

    return is_over


def cut(text: str, until: Sequence[str]) -> str:
    """Return what stands before the first of some texts, as lm-eval's own models cut their answers."""
    for stop in until:
        text = text.split(stop, 1)[0]
    return text
