"""lm-eval's tasks, found by name or file, and their requests: token ids, stop texts and a limit.

What cannot be right here, or is not greedy, is refused before a weight is read. A task is a program of whoever wrote
it: what its YAML file names as ``!function`` is run by lm-eval, here as there. Nothing else is: a metric that lm-eval
has not itself would be fetched from the hub as a program, and is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts import StopRule, Tokenizer
from harness.errors import ConfigError, DataError, HarnessError, UnknownNameError, reason

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit of new tokens, the first that is given counts."""
OF_SAMPLING = frozenset({"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed"})
"""Settings of sampling, which say nothing where it is off."""
_ONES = ("num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "encoder_repetition_penalty")
_ZEROS = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "diversity_penalty", "presence_penalty")
NEUTRAL: Mapping[str, int] = {
    **dict.fromkeys((*_ONES, "length_penalty", "guidance_scale"), 1),
    **dict.fromkeys((*_ZEROS, "frequency_penalty", "penalty_alpha", "min_length", "min_new_tokens", "min_tokens"), 0),
}
"""Values at which settings of sampling change nothing in greedy decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One text to generate."""

    task: str
    sample_id: str
    prompt_ids: tuple[int, ...]
    until: tuple[str, ...]
    limit: int
    instance: Any


def read_generation(task: str, settings: Mapping[str, Any], limit: int, end: str | None) -> tuple[tuple[str, ...], int]:
    """Return the stop texts and the limit of new tokens that a request's generation settings say."""
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

    The text of all tokens is searched, but only where some token holds a character that can complete one.
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


@dataclass(frozen=True)
class FoundTasks:
    """Tasks as lm-eval finds them: the names asked for, lm-eval's manager, and name → task, groups taken apart."""

    names: list[str]
    manager: Any
    tasks: Mapping[str, Any]


def find_tasks(names: list[str], include_path: Path | None) -> FoundTasks:
    """Load tasks with their documents."""
    import datasets
    from lm_eval.tasks import TaskManager

    if int(datasets.__version__.partition(".")[0]) < 4:
        raise ConfigError(
            f"datasets {datasets.__version__} runs programs that come with data sets where a task asks for that "
            "(trust_remote_code), and version 4 runs none:",
            ["pip install 'datasets>=4'"],
        )
    if not names:
        raise ConfigError("--tasks names nothing. Give tasks of lm-eval, or YAML files, as a comma list.")
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include-path {include_path}: there is no such folder. Give one with YAML files of tasks.")
    there = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=there, include_defaults=False)
    if _unknown(names, manager):  # lm-eval's own thousands take seconds to read
        manager = TaskManager(include_path=there)
    known = manager.all_tasks
    for name in _unknown(names, manager):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        raise UnknownNameError("lm-eval task", name, close, "`lm_eval ls tasks` lists them; a YAML file is one, too.")
    try:
        with own_metrics():
            tasks: Mapping[str, Any] = manager.load(list(names))["tasks"]
    except (HarnessError, MemoryError):
        raise
    except Exception as error:  # the task's own, its data set's, or lm-eval's
        raise DataError(
            f"lm-eval cannot load {', '.join(names)}: {reason(error)}. Check the task's YAML file and its data."
        ) from error
    for name, task in tasks.items():
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"the task {name} reads pictures or sounds, and the models here read text. Omit it.")
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"the task {name} runs code that the model wrote, and nothing here does. Omit it.")
    return FoundTasks(names, manager, tasks)


def _unknown(names: list[str], manager: Any) -> list[str]:
    known = set(manager.all_tasks)
    return [name for name in names if name not in known and not Path(name).is_file()]


@contextmanager
def own_metrics() -> Iterator[None]:
    """Let lm-eval load no metric as a program from the hub, as it does with one that it does not know."""
    import evaluate

    wanted: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        wanted.append(str(path))
        raise ConfigError(f"the metric {path} is none of lm-eval's own.")

    before, evaluate.load = evaluate.load, refuse
    try:
        yield
    finally:
        evaluate.load = before
        if wanted:  # lm-eval takes the refusal for a metric without a function
            raise ConfigError(
                f"a task wants the metric {wanted[0]}, which lm-eval would fetch from the hub and run as a program. "
                "Name one of lm-eval's own in its metric_list."
            )
