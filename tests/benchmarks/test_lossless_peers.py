"""Lossless decoding beside transformers' own: ``assistant_early_exit`` and prompt lookup on the same tuned weights.

SmolLM2-135M tuned so that one LM head reads every exit, two threads each; prompts are Python and Java files that
tuning has not read. transformers decodes in float32; the engine's ways are full depth, a fixed exit of the same layer
and draft length, look-up, and both, in float32 and fp16. What has the same weights shares a process; the processes take
turns, each prompt asks every way once and every second prompt in reverse. Figures are medians over prompts, ratios
medians of the prompts' ratios.

Each way's tokens are asserted to be those of greedy decoding by the same process, and float32's those of transformers.
Layers are counted beyond the prompt: transformers has the early ones read it a second time, which is said apart.
``make bench``.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from harness.config import RunConfig
from harness.config.model import DEFAULT_MODEL
from harness.errors import HarnessError
from harness.running.resolve import resolve
from tests.peers.engine_worker import SHARED
from tests.peers.workers import Decoded, Worker, WorkerFailedError

PROMPT, NEW, THREADS = 150, 20, 2
FILES = {"py150": 2, "javacorpus": 1}
WARM_UP = 3  # tokens
LAYER, LENGTH = 8, 4
IDLE = 0.02  # of a core, while others are at work

GENERATE, EXACT, HALF = "transformers", "engine float32", "engine fp16"
FIXED = f"layerskip:layer={LAYER}:length={LENGTH}"
WAYS: dict[str, tuple[str, ...]] = {
    GENERATE: ("", "lookup", f"early exit {LAYER} {LENGTH}", f"early exit {LAYER} 0"),
    EXACT: ("", "full@lossless+lookup", f"{FIXED}@lossless", f"{FIXED}@lossless+lookup"),
    HALF: ("", "full@lossless+lookup", f"{FIXED}@lossless", f"{FIXED}@lossless+lookup"),
}
SAID = {
    "": "greedy",
    "lookup": "prompt_lookup_num_tokens=6",
    f"early exit {LAYER} {LENGTH}": f"assistant_early_exit={LAYER}, {LENGTH} tokens",
    f"early exit {LAYER} 0": f"assistant_early_exit={LAYER}, its defaults",
}

pytestmark = [pytest.mark.model, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


class Way(NamedTuple):
    """A process and what it is told."""

    worker: str
    way: str

    @property
    def greedy(self) -> Way:
        """Full depth in the same process."""
        return Way(self.worker, "")


@dataclass
class Field:
    """Who took part, and what each way made of each prompt."""

    workers: dict[str, Worker] = field(default_factory=dict)
    made: dict[Way, list[Decoded]] = field(default_factory=lambda: defaultdict(list))

    def ratios(self, way: Way, over: Way, *, behind_prompt: bool) -> list[float]:
        """How many times as fast as another way, prompt by prompt."""
        theirs, ours = (
            [_token_s(one) if behind_prompt else one.times_s[-1] for one in self.made[each]] for each in (over, way)
        )
        return [their / our for their, our in zip(theirs, ours, strict=True)]

    def per_token(self, way: Way, count: str) -> float:
        """What ran for each token that follows the prompt's own, on average."""
        return sum(one.counts[count] for one in self.made[way]) / sum(len(one.token_ids) - 1 for one in self.made[way])


def _token_s(one: Decoded) -> float:
    """Seconds per token, of those that came after the first: the prompt's pass may yield several at once."""
    return (one.times_s[-1] - one.times_s[0]) / sum(at > one.times_s[0] for at in one.times_s)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """The ends of files that tuning has not read."""
    try:
        plan = resolve(
            RunConfig(
                model=DEFAULT_MODEL, artefacts=SHARED, tasks=tuple(FILES), limit=20, energy="none",
                max_new_tokens=NEW, device="cpu",
            )
        )  # fmt: skip
    except HarnessError as error:
        pytest.skip(str(error))
    found = []
    for task in plan.tasks:
        long = [sample.prompt_ids for sample in task.data.samples if len(sample.prompt_ids) >= PROMPT]
        files = FILES[task.record.name]
        assert len(long) >= files, task.record.name
        found += [list(ids[-PROMPT:]) for ids in long[:files]]
    return found


@pytest.fixture(scope="module")
def measured(prompts: list[list[int]], tables: dict[str, list[str]]) -> Iterator[Field]:
    with ExitStack() as stack:
        found = Field()
        for name in WAYS:
            asked = "generate" if name == GENERATE else name.removeprefix("engine ")
            try:
                worker = Worker("tests.peers.engine_worker", asked, str(THREADS), "tuned")
            except WorkerFailedError as failed:
                pytest.skip(f"{name}: {failed}")
            found.workers[name] = stack.enter_context(worker)
        ways = [Way(name, way) for row in zip(*WAYS.values(), strict=True) for name, way in zip(WAYS, row, strict=True)]
        for way in ways:
            found.workers[way.worker].decode(prompts[0], WARM_UP, way.way)
        for number, prompt in enumerate(prompts):
            for way in ways[:: -1 if number % 2 else 1]:
                found.made[way].append(found.workers[way.worker].decode(prompt, NEW, way.way))
        tables["lossless decoding beside transformers"] = [*written(found)]
        yield found


def written(found: Field) -> Iterator[str]:
    """The figures as lines."""
    yield (
        f"{THREADS} threads, {len(found.made[Way(EXACT, '')])} prompts of {PROMPT} tokens, {NEW} new; request: the "
        f"prompt included; decode: behind its pass; layers beyond the prompt, per token"
    )
    yield (
        f"{'':53}{'request':>9}{'decode':>10}{'request over':>22}{'decode over':>22}{'tokens per':>12}"
        f"{'layers':>8}{'layers':>8}{'first':>8}{'prompt':>8}"
    )
    yield (
        f"{'':53}{'s':>9}{'tokens/s':>10}{'transformers own':>22}{'transformers own':>22}{'deep pass':>12}"
        f"{'run':>8}{'read':>8}{'layer':>8}{'again':>8}"
    )
    for name, ways in WAYS.items():
        for way in (Way(name, way) for way in ways):
            made = found.made[way]
            over = [
                statistics.median(found.ratios(way, other, behind_prompt=behind))
                for behind in (False, True)
                for other in (Way(GENERATE, ""), way.greedy)
            ]
            passes = sum(one.counts["passes"] + 1 for one in made)  # the prompt's own yields tokens, too
            yield (
                f"{name:15} {SAID.get(way.way, way.way):37}{statistics.median(one.times_s[-1] for one in made):9.2f}"
                f"{1 / statistics.median(map(_token_s, made)):10.1f}"
                + "".join(f"{f'{over[at]:.2f} {over[at + 1]:7.2f}':>22}" for at in (0, 2))
                + f"{sum(len(one.token_ids) for one in made) / passes:12.2f}"
                + "".join(f"{found.per_token(way, count):8.1f}" for count in ("run", "read", "first"))
                + f"{sum(one.counts['again'] for one in made) / len(made):8.0f}"
            )


@pytest.mark.parametrize("name", WAYS)
def test_tokens_are_those_of_greedy_decoding(
    benchmark: Any, measured: Field, prompts: list[list[int]], name: str
) -> None:
    way = Way(name, WAYS[name][1])
    benchmark.pedantic(measured.workers[name].decode, (prompts[0], WARM_UP, way.way), rounds=3)
    for other in WAYS[name]:
        over = measured.ratios(Way(name, other), Way(GENERATE, ""), behind_prompt=False)
        benchmark.extra_info[f"{SAID.get(other, other)} over transformers"] = round(statistics.median(over), 3)
    for other in WAYS[name]:
        assert _tokens(measured, Way(name, other)) == _tokens(measured, Way(name, "")), other
    if name == EXACT:
        assert _tokens(measured, Way(name, "")) == _tokens(measured, Way(GENERATE, ""))


def test_whoever_waits_sleeps(benchmark: Any, measured: Field) -> None:
    """Another's polling threads would be measured as slowness."""
    shares = benchmark.pedantic(lambda: {name: worker.idle_share for name, worker in measured.workers.items()})
    print(f"\n  busiest while waiting: {max(shares.values()):.2%} of a core")
    assert max(shares.values()) < IDLE


def _tokens(found: Field, way: Way) -> list[list[int]]:
    return [one.token_ids for one in found.made[way]]
