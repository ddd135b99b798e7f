"""Full depth in every weights format against llama.cpp on the same file, and against transformers' ``generate``.

SmolLM2-135M, two threads each, 400 prompt tokens of Python source, 30 new tokens. Everything that decodes is a process
of its own (``tests/peers``), and they take turns: each round asks each of them once for the same prompt, every second
round in reverse. A request is all of it, prefill the time to the first token, decoding the mean of those after it;
figures are medians over the rounds, ratios medians of the rounds' ratios. llama.cpp runs the default model's own file,
which is Q4_1 with a Q8_0 LM head, and what it makes of that file itself; times end with numpy's arg-max, which with
Python around it is a tenth of a millisecond a token.

Goals are printed beside what was measured, and those that bind fail when it is less than half of them. That llama.cpp
computes the same model is asserted: along text of the engine's float32, its most probable tokens are the text's. So is
that whoever waits sleeps. Without llama.cpp (``make peers`` says why) its rows are missing and the rest is measured all
the same. ``make bench``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelRequest
from harness.errors import ModelError
from harness.models.model import resolve
from harness.models.source import find_spec, wheel_file
from harness.registry import WEIGHTS_FORMATS
from tests.peers import llama_cpp
from tests.peers.workers import Worker, WorkerFailedError

PROMPT, NEW, ROUNDS, THREADS = 400, 30, 6, 2
TEXTS, BEFORE, PLACES = 3, 100, 64  # of the comparison of tokens
SHORT = 16  # prompt tokens of what the history follows
IDLE = 0.02  # of a core, while others are at work

EXACT, TRANSFORMERS = "engine float32", "transformers"
OWN_FILE = "Q4_1"
AGREEMENT = {"Q4_1": 0.9, "Q8_0": 0.9, "F16": 0.9, "Q4_0": 0.4}
"""Quantisations, and the least share of places with float32's token. Q4_0 is made of what was Q4_1 before."""


class Goal(NamedTuple):
    """So many times as fast as another; half of it is a failure where the goal ``binds``."""

    format: str
    phase: str
    over: str
    at_least: float
    binds: bool = True


BEST = "llama.cpp's best"
GOALS = (
    Goal("fp16", "request", TRANSFORMERS, 2.0),
    Goal("int8", "request", TRANSFORMERS, 2.8),
    Goal("fp16", "prefill", EXACT, 0.95),
    # llama.cpp multiplies prompts in AMX's 8-bit tiles where there are any.
    Goal("w8a8", "prefill", BEST, 1.0, binds=False),
    Goal("w4a8", "prefill", BEST, 1.0, binds=False),
    Goal("fp16", "decode", EXACT, 2.2),
    Goal("fp16", "decode", TRANSFORMERS, 2.5),
    Goal("int4", "decode", f"llama.cpp {OWN_FILE}", 1.2),
    # Another file and its fastest kernels, eight rows interleaved.
    Goal("int4", "decode", "llama.cpp Q4_0", 1.0, binds=False),
)

pytestmark = [pytest.mark.model, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


@dataclass
class Field:
    """Who takes part and what was measured, by name: this engine's formats, llama.cpp's quantisations, transformers.

    Attributes:
        workers: those that run.
        absent: the others, with the reason.
        seconds: ``request``, ``prefill`` or ``decode`` → name → seconds of each round; decoding per token.
        resident: bytes, after the rounds.
        agreement: share of places with float32's token.
    """

    workers: dict[str, Worker] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {phase: defaultdict(list) for phase in ("request", "prefill", "decode")}
    )
    resident: dict[str, int] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def speed_up(self, phase: str, name: str, over: str) -> float:
        """How many times as fast as another, the median of the rounds."""
        pairs = zip(self.seconds[phase][over], self.seconds[phase][name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def best(self, phase: str) -> str:
        """The fastest of llama.cpp's quantisations, or one of those that are absent."""
        theirs = [name for name in self.seconds[phase] if name.startswith("llama.cpp")]
        return min(theirs or self.absent, key=lambda name: statistics.median(self.seconds[phase].get(name, [0.0])))

    def get(self, name: str) -> Worker:
        """The worker of that name; skips the test when there is none."""
        if name in self.absent:
            pytest.skip(f"{name}: {self.absent[name]}")
        return self.workers[name]


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    """Python source to take prompts from."""
    try:
        tokenizer = resolve(ModelRequest(DEFAULT_MODEL, weights="pretrained", exit_head="shared")).tokenizer
    except ModelError as error:
        pytest.skip(str(error))
    ids: list[int] = list(tokenizer.encode(Path(argparse.__file__).read_text(encoding="utf-8")))
    assert len(ids) > PROMPT * (ROUNDS + 1)
    return ids


@pytest.fixture(scope="module")
def measured(tokens: list[int], tables: dict[str, list[str]]) -> Iterator[Field]:
    with ExitStack() as stack:
        field_ = start(stack)
        for number in range(ROUNDS + 1):
            prompt = tokens[PROMPT * number : PROMPT * (number + 1)]
            for name in list(field_.workers)[:: -1 if number % 2 else 1]:
                made = field_.workers[name].decode(prompt, NEW if number else 2)
                if number:  # the first round is for warming up
                    field_.seconds["request"][name].append(made.times_s[-1])
                    field_.seconds["prefill"][name].append(made.times_s[0])
                    field_.seconds["decode"][name].append((made.times_s[-1] - made.times_s[0]) / (NEW - 1))
        field_.resident = {name: worker.resident_bytes for name, worker in field_.workers.items()}
        field_.agreement = agreement(field_.workers, tokens)
        tables["full depth beside llama.cpp and transformers"] = [*written(field_)]
        yield field_


def start(stack: ExitStack) -> Field:
    """Start everyone, and let llama.cpp's take turns with the others."""
    found = Field()
    for name in WEIGHTS_FORMATS.names():
        enter(found, stack, f"engine {name}", lambda name=name: ("tests.peers.engine_worker", name, str(THREADS)))
    enter(found, stack, TRANSFORMERS, lambda: ("tests.peers.engine_worker", "generate", str(THREADS)))
    others = list(found.workers)
    for quantisation in AGREEMENT:
        enter(found, stack, f"llama.cpp {quantisation}", lambda quantisation=quantisation: peer(quantisation))
    theirs = [name for name in found.workers if name not in others]
    turns = [name for pair in zip_longest(others, theirs) for name in pair if name]
    found.workers = {name: found.workers[name] for name in turns}
    return found


def enter(found: Field, stack: ExitStack, name: str, command: Callable[[], tuple[str, ...]]) -> None:
    """Start one, or keep the reason why it cannot be."""
    try:
        found.workers[name] = stack.enter_context(Worker(*command()))
    except (llama_cpp.PeerAbsentError, WorkerFailedError) as absent:
        found.absent[name] = str(absent)


def peer(quantisation: str) -> tuple[str, ...]:
    """What starts llama.cpp on the default model in a quantisation."""
    file = wheel_file(find_spec(DEFAULT_MODEL).wheel)
    if quantisation != OWN_FILE:
        file = llama_cpp.quantised(file, quantisation)
    return llama_cpp.command(file, THREADS, PROMPT + NEW)


def agreement(workers: dict[str, Worker], tokens: list[int]) -> dict[str, float]:
    """Share of the places of float32's own text at which each worker would have chosen the same token."""
    same: dict[str, int] = defaultdict(int)
    for number in range(TEXTS):
        prompt = tokens[PROMPT * number :][:BEFORE]
        text = workers[EXACT].decode(prompt, PLACES).token_ids
        for name, worker in workers.items():
            if name != TRANSFORMERS:
                chosen = worker.choices(prompt, text)
                same[name] += sum(theirs == ours for theirs, ours in zip(chosen, text, strict=True))
    return {name: count / (TEXTS * PLACES) for name, count in same.items()}


def written(found: Field) -> Iterator[str]:
    """The figures as lines: first what each does, then how the engine's formats compare with everyone."""
    facts = [worker.facts for name, worker in found.workers.items() if name.startswith("llama.cpp")][:1]
    yield f"{THREADS} threads, {PROMPT} prompt tokens, {NEW} new, medians of {ROUNDS} rounds; MB with mapped files"
    yield from (f"llama.cpp {each['llama.cpp']}, its build for {each['build']} ({each['features']})" for each in facts)
    yield f"{'':24}{'request':>10}{'prefill':>12}{'decode':>12}{'MB':>8}{'tokens as float32':>20}"
    for name in sorted(found.workers):
        request, prefill, decode = (statistics.median(seconds[name]) for seconds in found.seconds.values())
        share = f"{found.agreement[name]:.3f}" if name in found.agreement else "–"
        rates = f"{request:9.3f}s{PROMPT / prefill:10.0f}/s{1 / decode:10.1f}/s"
        yield f"{name:24}{rates}{found.resident[name] / 1e6:8.0f}{share:>18}"
    for name, reason in found.absent.items():
        yield f"{name:24}not measured: {reason}"
    for phase, seconds in found.seconds.items():
        others = [name for name in sorted(seconds) if name == EXACT or not name.startswith("engine ")]
        yield f"{f'{phase}, times as fast as':24}" + "".join(f"{name:>16}" for name in others)
        for name in sorted(seconds):
            if name.startswith("engine "):
                ratios = [found.speed_up(phase, name, other) for other in others]
                yield f"{name:24}" + "".join(f"{ratio:16.2f}" for ratio in ratios)


@pytest.mark.parametrize("name", WEIGHTS_FORMATS.names())
def test_full_depth(benchmark: Any, measured: Field, tokens: list[int], name: str) -> None:
    engine = f"engine {name}"
    worker = measured.get(engine)
    benchmark.pedantic(worker.decode, (tokens[:SHORT], NEW), rounds=5, warmup_rounds=1)
    for phase, seconds in measured.seconds.items():
        for other in seconds:
            benchmark.extra_info[f"{phase} over {other}"] = round(measured.speed_up(phase, engine, other), 3)
    failed = []
    for goal in GOALS:
        if goal.format != name:
            continue
        what = f"{name}, {goal.phase} over {goal.over}"
        over = measured.best(goal.phase) if goal.over == BEST else goal.over
        if over in measured.absent:
            print(f"\n  {what}: not measured: {measured.absent[over]}")
            continue
        value = measured.speed_up(goal.phase, engine, over)
        print(f"\n  {what}: {value:.2f}  (target ≥ {goal.at_least})")
        if goal.binds and value < goal.at_least / 2:
            failed.append(f"{what}: {value:.2f}, less than half of {goal.at_least}")
    assert not failed


@pytest.mark.parametrize("quantisation", AGREEMENT)
def test_llama_cpp(benchmark: Any, measured: Field, tokens: list[int], quantisation: str) -> None:
    name = f"llama.cpp {quantisation}"
    worker = measured.get(name)
    benchmark.pedantic(worker.decode, (tokens[:SHORT], NEW), rounds=5, warmup_rounds=1)
    share = benchmark.extra_info["tokens as float32's"] = measured.agreement[name]
    print(f"\n  {name}, places with float32's token: {share:.3f}  (at least {AGREEMENT[quantisation]})")
    assert share >= AGREEMENT[quantisation]


def test_whoever_waits_sleeps(benchmark: Any, measured: Field) -> None:
    """Another's polling threads would be measured as slowness."""
    shares = benchmark.pedantic(lambda: {name: worker.idle_share for name, worker in measured.workers.items()})
    print(f"\n  busiest while waiting: {max(shares.values()):.2%} of a core")
    assert max(shares.values()) < IDLE
