"""The endpoint under load: 32 clients for a minute on the default model; what HTTP adds to a first token, and an open
batch to a token; and what early exit is worth with several requests at once.

Errors and memory are asserted, since neither is moody; times are printed beside their targets. Run with ``make bench``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from harness.contracts import ModelRequest, Sample, SessionRequest, Strategy, TaskRequest, Tokenizer
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.models.model import resolve
from strategies.classifier import Classifier
from strategies.full import Full
from tasks.py150 import Py150
from tests.benchmarks.conftest import report

pytestmark = pytest.mark.model

CLIENTS, LOAD_S, NEW = 32, 60, 16
QUICK_LOAD_S = 24
"""With ``--benchmark-quick``; a third of either warms up."""
BATCH, QUEUE = 8, 20  # four of the clients find no place
PAIRS, SHORT = 10, 24
PAUSE_S = 1.0
"""Idle work is over sooner than typing is."""
READY_S = 300


@dataclass
class Load:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    queue_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    tokens: int = 0


@contextmanager
def served(*options: str) -> Iterator[tuple[str, int]]:
    """``harness serve`` with the default model as a process of its own: its URL and process id."""
    command = [sys.executable, "-m", "harness.cli", "serve", "--port", "0", "--threads", "2", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line
        url, limit = found.group(), time.monotonic() + READY_S
        while httpx.get(f"{url}/health").status_code != 200:
            assert time.monotonic() < limit
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[str, int]]:
    with served("--batch-size", str(BATCH), "--max-queue", str(QUEUE)) as found:
        yield found


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


async def ask(client: httpx.AsyncClient, url: str, text: str, load: Load) -> None:
    """One completion, streamed; what came is counted."""
    body = {"inputs": text, "parameters": {"max_new_tokens": NEW, "details": True}}
    async with client.stream("POST", f"{url}/generate_stream", json=body) as answer:
        load.statuses[answer.status_code] += 1
        last = b""
        async for line in answer.aiter_lines():
            last = line.encode() if line.startswith("data:") else last
    if answer.status_code == 200:
        done = json.loads(last[5:])
        assert "error" not in done, done
        report = done["x_early_exit"]
        load.queue_s.append(report["queue_s"])
        load.ttft_s.append(report["ttft_s"])
        load.tokens += len(report["exit_layers"])
    else:
        await asyncio.sleep(0.5)  # as it was told


async def press(url: str, pid: int, seconds: int) -> tuple[Load, list[int]]:
    """32 clients, each asking again as soon as it is answered; memory is read every second."""
    load, memory, end = Load(), list[int](), time.monotonic() + seconds

    async def client(number: int) -> None:
        drawn = random.Random(number)
        limits = httpx.Timeout(120)
        async with httpx.AsyncClient(timeout=limits) as session:
            while time.monotonic() < end:
                await ask(session, url, f"def f{number}(x):\n    y = {drawn.random()}\n" * drawn.randrange(1, 9), load)

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident_bytes(pid))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client(number) for number in range(CLIENTS)))
    return load, memory


def test_a_minute_of_load(request: pytest.FixtureRequest, benchmark: Any, endpoint: tuple[str, int]) -> None:
    url, pid = endpoint
    seconds = QUICK_LOAD_S if request.config.getoption("benchmark_quick") else LOAD_S
    asked = []
    benchmark.pedantic(lambda: asked.append(asyncio.run(press(url, pid, seconds))), rounds=1)
    ((load, memory),) = asked
    assert set(load.statuses) <= {200, 429}, load.statuses
    assert load.statuses[200] > CLIENTS
    warm_up = len(memory) // 3
    growth = max(memory[warm_up:]) / max(memory[:warm_up]) - 1
    report(benchmark, "completions", load.statuses[200], "no error")
    report(benchmark, "refused beyond the queue (429)", load.statuses[429], "some: clients − batch − queue = 4")
    report(benchmark, "tokens per second, 32 clients", load.tokens / seconds, "more than one client's")
    report(benchmark, "p50 queue wait, s", statistics.median(load.queue_s), "–")
    report(benchmark, "p99 queue wait, s", float(np.quantile(load.queue_s, 0.99)), "–")
    report(benchmark, "p99 time to first token, s", float(np.quantile(load.ttft_s, 0.99)), "–")
    report(benchmark, "resident memory, MiB", memory[-1] / 2**20, "–")
    report(benchmark, "memory growth after warm-up", growth, "at most 0.05")
    assert growth <= 0.05


def test_the_first_token_of_an_idle_server(
    benchmark: Any, endpoint: tuple[str, int], tuned: tuple[Engine, Tokenizer]
) -> None:
    """A short prompt's first token over HTTP, against prefill of the same tokens in this process, in turns.

    Each prompt is another one from its first token on, since a server reads a beginning that it knows no second time.
    """
    url, _ = endpoint
    here, tokenizer = tuned
    number = itertools.count(1000)

    def text() -> str:
        return f"{next(number)}\ndef fibonacci(n):\n    if n < 2:\n        return n\n    return "

    def engine() -> float:
        (made,) = here.decode([tokenizer.encode(text())], Full(), kv="propagate", max_new_tokens=[1])
        seconds: float = made.token_times_s[0]
        return seconds

    with httpx.Client() as session:

        def served() -> float:
            body = {"inputs": text(), "parameters": {"max_new_tokens": 1, "early_exit": {"strategy": "full"}}}
            start = time.perf_counter()
            with session.stream("POST", f"{url}/generate_stream", json=body) as answer:
                assert answer.status_code == 200
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        return time.perf_counter() - start
            raise AssertionError("no token came")

        ratios = alternating(benchmark, served, engine)
    report(benchmark, "time to first token over the engine's own", statistics.median(ratios), "at most 1.2")


SUFFIX = {"early_exit": {"strategy": "full", "decode": "lossless", "draft": "suffix"}}
WAYS: dict[str, dict[str, Any]] = {
    "cold, full depth": {"cache_prompt": False, "early_exit": {"strategy": "full"}},
    "warm, full depth": {"early_exit": {"strategy": "full"}},
    "warm, suffix": SUFFIX,
    "warm, exits": {"early_exit": {"strategy": "classifier"}},
    "warm, exits behind suffix": {"early_exit": {"strategy": "classifier", "decode": "lossless", "draft": "suffix"}},
}


@dataclass
class Editor:
    """One user's sessions over HTTP: seconds to the first event and to the last by way of working, and those wasted."""

    url: str
    samples: Sequence[Sample]
    pause_s: float = 0.0
    """Seconds that typing takes at most."""
    waited: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    wasted_s: float = 0.0

    def type_on(self, ways: Mapping[str, dict[str, Any]]) -> None:
        """Ask for every line in every way, and when warm also for what typing overtakes."""
        with httpx.Client(timeout=60) as client:
            for sample in self.samples:
                for mark, (name, way) in enumerate(ways.items(), 1000):  # another first token: ways share nothing
                    for typed in () if name.startswith("cold") else sample.overtaken_requests:
                        time.sleep(min(typed.typing_s, self.pause_s))
                        self.wasted_s += self._ask(client, [mark, *typed.prompt_ids], way, typed.after_s)[1]
                    time.sleep(min(sample.typing_s, self.pause_s))
                    self.waited.setdefault(name, []).append(self._ask(client, [mark, *sample.prompt_ids], way))

    def _ask(
        self, client: httpx.Client, prompt: list[int], way: dict[str, Any], within_s: float = 60
    ) -> tuple[float, float]:
        """Complete a line; the client goes away when the next key is typed."""
        body = {"prompt": prompt, "n_predict": 32, "stop": ["\n"], "stream": True, **way}
        start, first = time.perf_counter(), 0.0
        with client.stream("POST", f"{self.url}/completion", json=body) as answer:
            assert answer.status_code == 200
            for _ in answer.iter_lines():
                first = first or time.perf_counter() - start
                if time.perf_counter() - start > within_s:
                    break
        return first, time.perf_counter() - start


def drawn(tokenizer: Tokenizer, documents: int, requests: int) -> Sequence[Sample]:
    request = TaskRequest("codexglue-line", "embedded", limit=documents, session=SessionRequest(requests=requests))
    return Py150().load(request, tokenizer).samples


def test_an_editor_session(benchmark: Any, endpoint: tuple[str, int], tuned: tuple[Engine, Tokenizer]) -> None:
    """What one user waits for a line over HTTP: cold, and behind what earlier requests left; text drafts and exits."""
    editor = Editor(endpoint[0], drawn(tuned[1], 3, 6))
    benchmark.pedantic(lambda: editor.type_on(WAYS), rounds=1)
    for name, seconds in editor.waited.items():
        first, whole = (sorted(each) for each in zip(*seconds, strict=True))
        report(benchmark, f"{name}: first token p50, ms", 1000 * statistics.median(first), "60 where warm")
        report(benchmark, f"{name}: line p50, ms", 1000 * statistics.median(whole), "150 where warm")
        report(benchmark, f"{name}: line p95, ms", 1000 * float(np.quantile(whole, 0.95)), "–")
    total = editor.wasted_s + sum(s for name, each in editor.waited.items() if name.startswith("warm") for _, s in each)
    report(benchmark, "share of overtaken requests in warm time", editor.wasted_s / total, "–")


@pytest.mark.parametrize("prefetch", ["deepen", "draft", "all"])
def test_an_editor_session_with_idle_work(benchmark: Any, prefetch: str, tuned: tuple[Engine, Tokenizer]) -> None:
    """What a server computes while a user types, and how much of it nobody uses."""
    ways = {"full depth": WAYS["warm, full depth"], "suffix": SUFFIX}
    given = ["--decode", "lossy", "--prompt-exit", "layer=18:tail=64"]
    if prefetch == "draft":
        given = ["--decode", "lossless+suffix"]
    with served("--prefetch", prefetch, *given) as (url, _):
        editor = Editor(url, drawn(tuned[1], 2, 4), PAUSE_S)
        benchmark.pedantic(lambda: editor.type_on(ways), rounds=1)
        counted = dict(
            re.findall(r"early_exit_prefetch\w+_total(?:{work=\"(\w+)\"})? (\S+)", httpx.get(f"{url}/metrics").text)
        )
    deepened, drafted, used, spent_s = (float(counted.get(name, 0)) for name in ("deepened", "drafted", "used", ""))
    assert (deepened > 0, drafted > 0) == (prefetch != "draft", prefetch != "deepen")
    assert used <= drafted
    requests = sum(map(len, editor.waited.values()))
    waited_s = sum(whole for each in editor.waited.values() for _, whole in each)
    report(benchmark, "tokens of prompts made exact, a request", deepened / requests, "–")
    report(benchmark, "tokens drafted, a request", drafted / requests, "–")
    report(benchmark, "… of these used", used / requests, "all")
    total = waited_s + editor.wasted_s + spent_s
    report(benchmark, "share of idle work in all time", spent_s / total, "–")
    report(benchmark, "share of overtaken requests in all time", editor.wasted_s / total, "–")


def alternating(benchmark: Any, one: Callable[[], float], other: Callable[[], float]) -> list[float]:
    """Ratios of pairs measured one after the other, in both orders."""
    ratios = []

    def pair() -> None:
        if len(ratios) % 2:
            below, above = other(), one()
        else:
            above, below = one(), other()
        ratios.append(above / below)

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=2)
    return ratios[2:]


@pytest.fixture(scope="module")
def tuned() -> tuple[Engine, Tokenizer]:
    """The default model as it is served, and its tokenizer."""
    torch.set_num_threads(2)
    found = resolve(ModelRequest("smollm2-135m", weights_format="auto"))
    loaded = found.load("cpu")
    return Engine(loaded.backbone, loaded.info), found.tokenizer


@pytest.fixture(scope="module")
def prompt(tuned: tuple[Engine, Tokenizer]) -> list[int]:
    text = "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        "
    return list(tuned[1].encode(text))


class Open:
    """An open batch that decodes one prompt in so many rows, under a KV policy."""

    def __init__(self, engine: Engine, rows: int, kv: str) -> None:
        self.tally = [Generation() for _ in range(rows)]
        self.exits = RowExits(engine.info, "cpu", self.tally)
        self.batch = engine.open(rows, 256, kv, self.exits, self.tally)
        self.batch.with_log_probabilities = True

    def step_s(self, prompt: list[int], strategy: Strategy) -> float:
        """Seconds per step, of :data:`SHORT` in every row; the prompts differ by where they begin."""
        for row in range(len(self.tally)):
            self.exits.join(row, strategy, 0)
            self.batch.join(row, prompt[row:], SHORT)
            self.batch.prefill([row])
        start, steps = time.perf_counter(), 0
        while self.batch.running:
            self.batch.step()
            steps += 1
        return (time.perf_counter() - start) / steps


def test_an_open_batch_of_one(benchmark: Any, tuned: tuple[Engine, Tokenizer], prompt: list[int]) -> None:
    """A token of a served request, log-probability included, against one of a closed batch, in turns."""
    engine, _ = tuned
    strategy, opened = Classifier(), Open(engine, 1, "propagate")

    def closed() -> float:
        (made,) = engine.decode([prompt], strategy, kv="propagate", max_new_tokens=[SHORT])
        return (made.token_times_s[-1] - made.token_times_s[0]) / (len(made.token_ids) - 1)

    ratios = alternating(benchmark, lambda: opened.step_s(prompt, strategy), closed)
    report(benchmark, "token of a served request over a closed batch's", statistics.median(ratios), "at most 1.03")


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("kv", ["recompute", "propagate"])
def test_early_exit_with_several_at_once(
    benchmark: Any, tuned: tuple[Engine, Tokenizer], prompt: list[int], kv: str, rows: int
) -> None:
    """Full depth's seconds per step over the classifier's, so many requests at once."""
    engine, _ = tuned
    opened = Open(engine, rows, kv)
    ratios = alternating(benchmark, lambda: opened.step_s(prompt, Full()), lambda: opened.step_s(prompt, Classifier()))
    report(benchmark, f"speed-up of the classifier under {kv}, {rows} at once", statistics.median(ratios), "–")
