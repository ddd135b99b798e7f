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
from harness.serving.completions import GenerationError, Job
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
def done(monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """What the engine does, in order: ``read N`` for a piece of row N's prompt, and how many rows make a token."""
    did: list[str | int] = []
    prefill, step = OpenBatch.prefill, OpenBatch.step

    def reads(batch: OpenBatch, rows: list[int], most: int | None = None) -> None:
        did.append(f"read {rows[0]}")
        prefill(batch, rows, most)

    def steps(batch: OpenBatch) -> None:
        did.append(len(batch.running))
        step(batch)

    monkeypatch.setattr(OpenBatch, "prefill", reads)
    monkeypatch.setattr(OpenBatch, "step", steps)
    return did


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
    own: Callable[..., Service], done: list[str | int]
) -> None:
    service = own(prefill_tokens=PIECE)
    done.clear()
    short, long = read(service, 1, 10, new=20), read(service, 2, LONG)
    first, second = run(service, short, long)
    begun = done.index("read 1")
    assert done[:begun] == ["read 0", 1]
    assert done[begun : begun + 14] == ["read 1", 1] * 6 + ["read 1", 2]  # seven pieces of 28 or 29
    assert tokens(first) == alone(service, short).token_ids
    assert tokens(second) == alone(service, long).token_ids


def test_pieces_follow_each_other_where_nothing_else_runs(own: Callable[..., Service], done: list[str | int]) -> None:
    service = own(prefill_tokens=PIECE)
    done.clear()
    run(service, read(service))
    assert done[:7] == ["read 0"] * 7
    assert done[7:] == [1] * (len(done) - 7)


def test_prompts_are_read_in_the_order_in_which_they_came(own: Callable[..., Service], done: list[str | int]) -> None:
    service = own(prefill_tokens=PIECE, batch_size=3)
    done.clear()
    endings = run(service, *(read(service, seed, LONG - 60 * seed) for seed in range(3)))
    order = [int(str(one).removeprefix("read ")) for one in done if isinstance(one, str)]
    assert order == [0] * 7 + [1] * 5 + [2] * 3
    for seed, ending in enumerate(endings):
        assert tokens(ending) == alone(service, read(service, seed, LONG - 60 * seed)).token_ids


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


@pytest.mark.parametrize(("first", "second"), [("me", "you"), ("me", None), (None, "me"), (None, None)])
def test_what_another_owner_sent_is_read_anew(
    own: Callable[..., Service], starts: list[tuple[int, int]], first: str | None, second: str | None
) -> None:
    service = own(batch_size=1)
    run(service, read(service, owner=first))
    starts.clear()
    (done,) = run(service, read(service, owner=second))
    assert (starts, done.prompt_reused) == ([(0, LONG)], 0)


def test_where_no_prompt_is_kept_every_one_is_read_whole(
    own: Callable[..., Service], starts: list[tuple[int, int]]
) -> None:
    service = own(kept_prompts=0)
    starts.clear()
    for done in (*run(service, read(service)), *run(service, read(service), read(service))):
        assert done.prompt_reused == 0
    assert starts == [(0, LONG)] * 3


def test_no_more_prompts_are_kept_than_allowed(own: Callable[..., Service]) -> None:
    service = own(kept_prompts=2, batch_size=4)
    reused = [run(service, read(service, seed))[0].prompt_reused for seed in (0, 1, 2, 1, 2, 0)]
    assert reused == [0, 0, 0, LONG - 1, LONG - 1, 0]


def test_one_who_goes_away_while_its_prompt_is_read_frees_the_row_at_once(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own(prefill_tokens=PIECE)
    short, long = read(service, 1, 10, new=30), read(service, 2, LONG)
    prefill, pieces = OpenBatch.prefill, list[int]()

    async def scene() -> Any:
        other, ticket = service.submit(short), service.submit(long)

        def cancel_after_two(batch: OpenBatch, rows: list[int], most: int) -> None:
            prefill(batch, rows, most)
            pieces.append(rows[0])
            if pieces.count(1) == 2:
                ticket.cancel()

        with monkeypatch.context() as patch:
            patch.setattr(OpenBatch, "prefill", cancel_after_two)
            return [piece async for piece in other][-1]

    done = asyncio.run(scene())
    assert pieces == [0, 1, 1]
    assert tokens(done) == alone(service, short).token_ids
    assert service.running == service.waiting == 0
    (again,) = run(service, long)
    assert again.prompt_reused == 58  # two pieces of 29
    assert tokens(again) == alone(service, long).token_ids
    assert b'early_exit_completions_total{outcome="cancelled"} 1.0\n' in service.metrics.page()[0]


def test_what_fails_while_a_prompt_is_read_takes_nobody_with_it_and_leaves_nothing(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own(prefill_tokens=PIECE)
    short, long = read(service, 1, 10, new=30), read(service, 2, LONG)
    fill = PrefixPass.fill

    def broken(self: PrefixPass) -> None:
        if self._start > 50:
            raise RuntimeError("no room")
        fill(self)

    with monkeypatch.context() as patch:
        patch.setattr(PrefixPass, "fill", broken)
        done, error = run(service, short, long)
    assert isinstance(error, GenerationError)
    assert tokens(done) == alone(service, short).token_ids
    (again,) = run(service, long)
    assert again.prompt_reused == 0
    assert tokens(again) == alone(service, long).token_ids


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


def test_reused_and_computed_tokens_are_counted(own: Callable[..., Service]) -> None:
    service = own()
    for _ in range(2):
        run(service, read(service))
    service.drain()
    assert service.close()  # the client has its answer before the counters have
    page = service.metrics.page()[0].decode()
    assert f"early_exit_prompt_tokens_total {2.0 * LONG}\n" in page
    assert f"early_exit_prompt_tokens_reused_total {LONG - 1.0}\n" in page
    assert f"early_exit_prompt_tokens_computed_total {LONG + 1.0}\n" in page
