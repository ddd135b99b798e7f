"""Whether what other packages register keeps the contract that it is registered under, on a model that decodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.api.generation import Completion as Generated
from harness.api.model import Model, load
from harness.contracts import Completion, Score
from harness.contracts.tasks import TaskRequest
from harness.errors import HarnessError, UnknownNameError, reason
from harness.host.libraries import resolve_device
from harness.registry import REGISTRIES, STRATEGIES, Entry, Registry, without_exit

PROMPTS = ("def add(a, b):\n    ", "for key in sorted(found):\n    print(key, found[key])\n    ", "import os\n\n\ndef ")
NEW_TOKENS = 16


class BrokenContractError(Exception):
    """What a plug-in does against its contract, in one line."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one registered name.

    Attributes:
        kind: plural of what is registered, as in ``harness list``.
        entry: name and package.
        problem: what is against the contract; empty where nothing is.
        held: what was seen to hold.
        unchecked: why it could not be checked further; empty where it was.
    """

    kind: str
    entry: Entry
    problem: str = ""
    held: tuple[str, ...] = ()
    unchecked: str = ""


def check_plugins(names: Collection[str], model: str) -> Iterator[Finding]:
    """Yield what comes of every plug-in, or of those named: by registered name or by package.

    Raises:
        UnknownNameError: there is none of a name.
    """
    theirs = [
        (kind, registry, entry)
        for kind, registry in REGISTRIES.items()
        for entry in registry.entries()
        if entry.is_plugin
    ]
    for name in names:
        if not any(name in (entry.name, entry.distribution) for _, _, entry in theirs):
            known = {word: None for _, _, entry in theirs for word in (entry.name, entry.distribution)}
            raise UnknownNameError("plug-in", name, known, "Install the package beside the harness first.")
    wanted = [one for one in theirs if not names or {one[2].name, one[2].distribution} & set(names)]
    packed = "fp16" if resolve_device("auto") == "cpu" else "auto"  # whose layers are compiled, and make state tests
    loaded = load(model, weights_format=packed) if any(kind in _CHECKS for kind, _, _ in wanted) else None
    for kind, registry, entry in wanted:
        yield _checked(kind, registry, entry, loaded)


def _checked(kind: str, registry: Registry[Any], entry: Entry, model: Model | None) -> Finding:
    held: list[str] = []
    try:
        with without_exit():
            registry.load(entry.name)
            held.append("loads")
            if not entry.summary:
                raise BrokenContractError("its docstring is empty, and lists show the first line")
            if kind in _CHECKS and model is not None:
                held.extend(_CHECKS[kind](entry.name, model))
    except BrokenContractError as broken:
        return Finding(kind, entry, str(broken), tuple(held))
    except HarnessError as refused:
        if not held:
            return Finding(kind, entry, str(refused))
        return Finding(kind, entry, held=tuple(held), unchecked=str(refused))
    except Exception as error:  # whatever a plug-in raises is its own
        return Finding(kind, entry, f"{type(error).__name__}: {reason(error)}", tuple(held))
    return Finding(kind, entry, held=tuple(held))


def _strategy(name: str, model: Model) -> Iterator[str]:
    yield from _rows(model, strategy=name)
    kind: Any = STRATEGIES.load(name)
    if isinstance(kind, type) and {"state_test", "should_exit"} <= vars(kind).keys():
        asked = type(kind.__name__, (kind,), {"should_exit": vars(kind)["should_exit"]})
        _same(
            "its state test, and should_exit", model.generate(PROMPTS, name, **_OPTIONS), _made(model, strategy=asked)
        )
        yield "state test as asked"
    _same_tokens("@lossless, and full depth", _made(model, strategy=name, decode="lossless"), _made(model))
    yield "lossless"


def _kv(name: str, model: Model) -> Iterator[str]:
    _same_tokens(
        "full depth under this policy, and under recompute", _made(model, kv=name), _made(model, kv="recompute")
    )
    yield "never exiting is full depth"
    yield from _rows(model, strategy="random:probability=0.5", kv=name)
    facts = REGISTRIES["kv"].load(name).facts
    if facts.exact:
        exits = "random:probability=0.5"
        _same("this policy, which says it is exact, and recompute", *(
            _made(model, strategy=exits, kv=policy) for policy in (name, "recompute")
        ))  # fmt: skip
        yield "exact"


def _drafts(name: str, model: Model) -> Iterator[str]:
    how = f"lossless+{name}"
    _same_tokens(f"full@{how}, and full depth", _made(model, decode=how), _made(model))
    yield "lossless"
    yield from _rows(model, decode=how)


def _stops(name: str, model: Model) -> Iterator[str]:
    for stopped, whole in zip(_made(model, stop_rule=name), _made(model), strict=True):
        if not whole.text.startswith(stopped.text):
            raise BrokenContractError(f"it writes {stopped.text!r}, which does not begin {whole.text!r}")
    yield "a beginning of the text"


def _prompts(name: str, model: Model) -> Iterator[str]:
    yield from _rows(model, prompt_exit=name)


def _scores(name: str, model: Model) -> Iterator[str]:
    score: Score = REGISTRIES["scores"].load(name)()
    why = score.unavailable()
    if why is not None:
        yield f"unavailable here: {why}"
        return
    language = min(score.languages, default="python")
    said = ["return a + b", "return a - b", "", "x = (\n"]
    pairs = [(text, reference) for text in said for reference in said[:2]]
    for text, reference in pairs:
        ids = (model.loaded.tokenizer.encode(text), model.loaded.tokenizer.encode(reference))
        one = Completion(text, reference, *ids, language=language)
        if score.scores_samples and score.judges(one):
            _allowed(score, score.sample(one), f"sample of {text!r} beside {reference!r}")
    if score.scores_corpora:
        _allowed(score, score.corpus(pairs, language), "corpus")
    yield "values in range"


def _tasks(name: str, model: Model) -> Iterator[str]:
    task = REGISTRIES["tasks"].load(name)()
    if task.name != name:
        raise BrokenContractError(f"it is registered as {name!r} and calls itself {task.name!r}")
    tokenizer = model.loaded.tokenizer
    first, again = (task.load(TaskRequest(task.default_protocol, "embedded", limit=8), tokenizer) for _ in range(2))
    if first != again:
        raise BrokenContractError("it draws other samples the second time")
    ids = [sample.sample_id for sample in first.samples]
    if len(set(ids)) < len(ids):
        raise BrokenContractError("two samples have one id")
    yield "draws the same twice"
    stop = task.stop_rule(task.default_protocol, tokenizer)
    for sample in first.samples:
        if not sample.prompt_ids:
            raise BrokenContractError(f"the prompt of {sample.sample_id} is empty")
        said = stop(list(sample.reference_ids) or [0])
        if not isinstance(said, bool):
            raise BrokenContractError(f"its stop rule says {said!r} and neither true nor false")
    yield f"{len(ids)} samples"


_OPTIONS: Mapping[str, Any] = {"max_new_tokens": NEW_TOKENS}
_CHECKS: Mapping[str, Callable[[str, Model], Iterator[str]]] = {
    "strategies": _strategy, "kv": _kv, "drafts": _drafts, "stops": _stops, "prompts": _prompts, "scores": _scores,
    "tasks": _tasks,
}  # fmt: skip


def _made(model: Model, **how: Any) -> list[Generated]:
    return model.generate(PROMPTS, **_OPTIONS, **how)


def _rows(model: Model, **how: Any) -> Iterator[str]:
    """See that rows of a batch get what each gets alone."""
    alone = [model.generate(prompt, **_OPTIONS, **how) for prompt in PROMPTS]
    _same("a prompt alone, and in a batch", alone, _made(model, **how))
    yield "alone as in a batch"


def _same(what: str, these: Sequence[Generated], those: Sequence[Generated]) -> None:
    _same_tokens(what, these, those)
    for number, (one, other) in enumerate(zip(these, those, strict=True)):
        layers = [[step.exit_layer for step in made.steps] for made in (one, other)]
        if layers[0] != layers[1]:
            raise BrokenContractError(f"{what}, leave at other layers: prompt {number}, {layers[0]} and {layers[1]}")


def _same_tokens(what: str, these: Sequence[Generated], those: Sequence[Generated]) -> None:
    for number, (one, other) in enumerate(zip(these, those, strict=True)):
        if [step.token_id for step in one.steps] != [step.token_id for step in other.steps]:
            raise BrokenContractError(f"{what}, write other tokens: prompt {number}, {one.text!r} and {other.text!r}")


def _allowed(score: Score, value: object, what: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not score.allows(value):
        said = "a number of its unit" if score.unit else "a number from 0 to 1"
        raise BrokenContractError(f"its {what} is {value!r}, and should be {said} or None")
