"""Prompts are read in turn and in pieces, and not where an earlier one of the same API key began alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from harness.decoding import loop
from harness.decoding.loop import OpenBatch
from harness.decoding.step import PrefixPass
from harness.registry import KV_POLICIES
from harness.serving.completions import Job
from harness.serving.service import Service
from tests.serving.conftest import Running, alone, job, run
from tests.serving.conftest import ids as tokens

PIECE, LONG = 32, 200


def read(service: Service, seed: int = 0, length: int = LONG, *, owner: str | None = "me", new: int = 6) -> Job:
    """A job whose prompt has so many tokens."""
    chance = random.Random(seed)
    made = job(service, "x", new)
    ids = tuple(chance.randrange(5, service.info.vocab_size) for _ in range(length))
    return replace(made, prompt=replace(made.prompt, token_ids=ids), owner=owner)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where each piece that is read begins, and how many tokens it has."""
    pieces: list[tuple[int, int]] = []

    class Watched(PrefixPass):
        def __init__(self, *given: Any, start: int = 0, **more: Any) -> None:
            super().__init__(*given, start=start, **more)
            if self._cache is not None:
                pieces.append((start, len(given[2][0])))

    monkeypatch.setattr(loop, "PrefixPass", Watched)
    return pieces


def test_a_running_request_makes_a_token_between_two_pieces_of_a_long_prompt(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, done = own(prefill_tokens=PIECE), list[str | int]()
    prefill, step = OpenBatch.prefill, OpenBatch.step
    note = done.append
    monkeypatch.setattr(
        OpenBatch, "prefill", lambda batch, rows, most=None: (note(f"read {rows[0]}"), prefill(batch, rows, most))
    )
    monkeypatch.setattr(OpenBatch, "step", lambda batch: (note(len(batch.running)), step(batch)))
    short, long = read(service, 1, 10, new=20), read(service, 2, LONG)
    first, second = run(service, short, long)
    begun = done.index("read 1")
    assert done[:begun] == ["read 0", 1]
    assert done[begun : begun + 14] == ["read 1", 1] * 6 + ["read 1", 2]  # seven pieces of 28 or 29
    assert tokens(first) == alone(service, short).token_ids
    assert tokens(second) == alone(service, long).token_ids


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_second_request_in_a_file_reads_what_is_new(
    own: Callable[..., Service], kv: str, starts: list[tuple[int, int]]
) -> None:
    service = own(kv=kv, batch_size=2)
    first = read(service)
    ids = first.prompt.token_ids
    second = replace(first, prompt=replace(first.prompt, token_ids=(*ids[:150], *reversed(ids[150:180]))))
    (before,) = run(service, first)
    starts.clear()
    (done,) = run(service, second)
    cached = KV_POLICIES.load(kv).facts.keeps_cache
    assert starts == ([(150, 30)] if cached else [])
    assert (before.prompt_reused, done.prompt_reused) == (0, 150 if cached else 0)
    assert tokens(done) == alone(service, second).token_ids


def test_the_same_prompt_several_times_at_once_is_read_once(
    own: Callable[..., Service], starts: list[tuple[int, int]]
) -> None:
    service = own(prefill_tokens=64)
    starts.clear()
    endings = run(service, *(read(service, new=30) for _ in range(3)))
    assert starts == [(0, 50), (50, 50), (100, 50), (150, 50), (LONG - 1, 1), (LONG - 1, 1)]
    assert [done.prompt_reused for done in endings] == [0, LONG - 1, LONG - 1]
    for done in endings:
        assert tokens(done) == alone(service, read(service, new=30)).token_ids


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "fails"])
def test_who_leaves_or_fails_while_its_prompt_is_read_frees_the_row_and_takes_nobody_with_it(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    service, pieces, prefill = own(prefill_tokens=PIECE), list[int](), OpenBatch.prefill
    short, long = read(service, 1, 10, new=30), read(service, 2, LONG)

    async def scene() -> Any:
        other, answer = service.submit([short]), service.submit([long])

        def cut_off(batch: OpenBatch, rows: list[int], most: int) -> None:
            prefill(batch, rows, most)
            pieces.append(rows[0])
            if pieces.count(1) == 2:
                answer.cancel()
                if not leaves:
                    raise RuntimeError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(OpenBatch, "prefill", cut_off)
            return [piece async for _, piece in other][-1]

    assert tokens(asyncio.run(scene())) == alone(service, short).token_ids
    assert (pieces, service.running, service.waiting) == ([0, 1, 1], 0, 0)
    (again,) = run(service, long)
    assert again.prompt_reused == (58 if leaves else 0)  # two pieces of 29; nothing is taken from what failed
    assert tokens(again) == alone(service, long).token_ids


def test_no_more_prompts_are_kept_than_allowed(own: Callable[..., Service]) -> None:
    service = own(kept_prompts=2, batch_size=4)
    reused = [run(service, read(service, seed))[0].prompt_reused for seed in (0, 1, 2, 1, 2, 0)]
    assert reused == [0, 0, 0, LONG - 1, LONG - 1, 0]
    service = own(kept_prompts=0)
    assert [done.prompt_reused for done in (*run(service, read(service)), *run(service, read(service)))] == [0, 0]


TEXT = "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        "


def reused(server: Running, headers: dict[str, str], **body: Any) -> int:
    """Ask twice, and return what OpenAI's dialect says the second one reused."""
    for _ in range(2):
        answer = httpx.post(
            f"{server.url}/v1/completions", json={"prompt": TEXT, "max_tokens": 2, **body}, headers=headers, timeout=60
        ).json()
    report = answer["x_early_exit"]
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == report["prompt_tokens_reused"] < report["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    return cached


def first_time(server: Running, headers: dict[str, str]) -> int:
    answer = httpx.post(
        f"{server.url}/infill", json={"input_prefix": TEXT, "n_predict": 1}, headers=headers, timeout=60
    )
    timings: dict[str, int] = answer.json()["timings"]
    return timings["cache_n"]


def test_api_keys_share_nothing_over_http(start: Callable[..., Running]) -> None:
    server = start()
    everything = len(server.service.encode(TEXT, None, truncate=False).token_ids) - 1
    bearers = [
        {},
        {"Authorization": "Bearer one"},
        {"Authorization": "Bearer two"},
        {"X-Api-Key": "three"},
        {"Authorization": "Bearer one", "X-Api-Key": "two"},
    ]
    for headers in bearers:
        assert first_time(server, headers) == 0, headers
        assert reused(server, headers) == everything
    assert first_time(server, {"X-Api-Key": "one"}) == everything  # the same key, borne otherwise


def test_a_client_may_have_its_prompt_read_anew(server: Running) -> None:
    body = {"prompt": TEXT + "# anew", "n_predict": 1}
    for cached, wanted in ((False, 0), (False, 0), (True, None), (False, 0)):
        answer = httpx.post(f"{server.url}/completion", json={**body, "cache_prompt": cached}, timeout=60).json()
        assert wanted is None or answer["timings"]["cache_n"] == answer["tokens_cached"] == wanted
