"""How fast prompts are read: against transformers, in pieces, behind what an earlier prompt left, and beside others.

The default model as it is served, two threads. Ratios are medians over pairs measured one after the other, in both
orders; they are printed beside their targets. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import Any

import pytest
import torch

from harness.contracts import ModelRequest
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.models.model import resolve
from strategies.full import Full
from tests.benchmarks.conftest import report
from tests.benchmarks.test_serving_load import alternating

PROMPT, FILE, LONG, TYPED = 400, 1000, 2000, 20
PIECES = (128, 256, 512)

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(2)
    found = resolve(ModelRequest("smollm2-135m", weights_format="auto"))
    return Engine(found.load("cpu").backbone, found.info)


def drawn(length: int, seed: int = 0) -> list[int]:
    ids: list[int] = torch.randint(100, 40_000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


class Open:
    """An open batch of two rows, as the server's."""

    def __init__(self, engine: Engine) -> None:
        self.tally = [Generation(), Generation()]
        self.exits = RowExits(engine.info, "cpu", self.tally)
        self.batch = engine.open(2, LONG + 200, "propagate", self.exits, self.tally, kept_prompts=2)

    def join(self, row: int, prompt: list[int], owner: str | None = None, new: int = 1) -> int:
        self.exits.join(row, Full(), 0)
        return self.batch.join(row, prompt, new, owner=owner)

    def read_s(self, row: int, prompt: list[int], most: int | None = None, owner: str | None = None) -> float:
        """Seconds from a prompt to its first token."""
        start = time.perf_counter()
        self.join(row, prompt, owner)
        while row in self.batch.reading:
            self.batch.prefill([row], most)
        return time.perf_counter() - start

    def pauses(self, prompt: list[int], most: int | None) -> list[float]:
        """Seconds between two tokens of row 0: first one of none but itself, then those while row 1 reads a prompt."""
        self.join(0, drawn(PROMPT, 1), new=200)
        self.batch.prefill([0])
        self.batch.step()
        self.batch.step()
        self.join(1, prompt, new=200)
        while 1 in self.batch.reading:
            self.batch.prefill([1], most)
            self.batch.step()
        for row in (0, 1):
            self.batch.drop(row)
        times = self.tally[0].token_times_s[1:]
        return [after - before for before, after in pairwise(times)]


def test_prefill_against_transformers(benchmark: Any, engine: Engine, smollm2: Any) -> None:
    """The first token of a prompt of 400, over transformers' float32 time for it."""
    torch.set_num_threads(2)
    prompt = drawn(PROMPT)
    ids = torch.tensor([prompt])

    def ours() -> float:
        (made,) = engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[1])
        return made.token_times_s[0]

    def theirs() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            smollm2.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        return time.perf_counter() - start

    ratios = alternating(benchmark, ours, theirs)
    report(benchmark, f"prefill of {PROMPT} over transformers' in float32", statistics.median(ratios), "at most 1.0")


@pytest.mark.parametrize("most", PIECES)
def test_pieces_against_one(benchmark: Any, engine: Engine, most: int) -> None:
    """A long prompt while nothing else runs: in pieces, over the same in one."""
    opened, prompt = Open(engine), drawn(LONG)
    ratios = alternating(benchmark, lambda: opened.read_s(0, prompt, most), lambda: opened.read_s(0, prompt))
    report(benchmark, f"{LONG} tokens in pieces of {most}, over one", statistics.median(ratios), "at most 1.05")


def test_prompts_of_a_ragged_batch(benchmark: Any, engine: Engine) -> None:
    """Four prompts of 100 to 400 tokens in one batch, over the same one after the other."""
    prompts = [drawn(length, length) for length in (400, 300, 200, 100)]

    def seconds(batches: list[list[list[int]]]) -> float:
        start = time.perf_counter()
        for batch in batches:
            engine.decode(batch, Full(), kv="propagate", max_new_tokens=[1] * len(batch))
        return time.perf_counter() - start

    ratios = alternating(benchmark, lambda: seconds([prompts]), lambda: seconds([[one] for one in prompts]))
    report(benchmark, "prompts of a ragged batch over one by one", statistics.median(ratios), "at most 1.05")


def test_a_second_request_in_a_file(benchmark: Any, engine: Engine) -> None:
    """Some tokens were typed since the first one: its time over the first one's."""
    opened, number = Open(engine), iter(range(1000))

    def first() -> float:
        return opened.read_s(0, drawn(FILE, next(number)), 256, "me")

    def second() -> float:
        seed = next(number)
        opened.read_s(0, drawn(FILE, seed), 256, "me")
        return opened.read_s(0, [*drawn(FILE, seed), *drawn(TYPED, seed + 1)], 256, "me")

    ratios = alternating(benchmark, second, first)
    share = TYPED / (FILE + TYPED)
    report(benchmark, f"{TYPED} tokens behind {FILE} that were read, over these", statistics.median(ratios), "–")
    print(f"  (they are {share:.3f} of the tokens; a pass of a few takes as long as reading the weights)")


@pytest.mark.parametrize("most", [*PIECES, None])
def test_longest_pause_of_a_running_row(benchmark: Any, engine: Engine, most: int | None) -> None:
    """What a prompt of 2,000 tokens costs the one who is reading along: its longest wait for a token."""
    opened, prompt, longest = Open(engine), drawn(LONG), list[tuple[float, float]]()

    def come_in() -> None:
        alone, *beside = opened.pauses(prompt, most)
        longest.append((max(beside), alone))

    benchmark.pedantic(come_in, rounds=3, warmup_rounds=1)
    how = "in one piece" if most is None else f"in pieces of {most}"
    report(benchmark, f"longest pause, s, {how}", statistics.median(pause for pause, _ in longest[1:]), "–")
    ratio = statistics.median(pause / alone for pause, alone in longest[1:])
    report(benchmark, f"the same over a token's time alone, {how}", ratio, "–")
