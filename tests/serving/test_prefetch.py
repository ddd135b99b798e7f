"""What a server does while nobody waits: later answers are full depth's, sooner, and no request waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.decoding.idle import DRAFTED
from harness.decoding.loop import OpenBatch
from harness.decoding.unit_costs import Timing
from harness.registry import DRAFTS
from harness.serving import service as serving
from harness.serving.completions import Finished, Job, early_exit_report
from harness.serving.service import Service
from tests.serving.conftest import PROMPTS, alone, collect, ids, job, run

Own = Callable[..., Service]
RULE = "tail:layer=4:tail=8:first=2"


def counted(service: Service, work: str) -> float:
    value = service.metrics.registry.get_sample_value("early_exit_prefetched_tokens_total", {"work": work})
    return value or 0.0


def until(there: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not there() and time.monotonic() < limit:
        time.sleep(0.01)
    assert there()


def ask(service: Service, wanted: Job) -> Finished:
    (done,) = run(service, replace(wanted, owner="me"))
    assert isinstance(done, Finished), done
    return done


def behind(wanted: Job, *tokens: int) -> Job:
    """The same request some tokens later."""
    return replace(wanted, prompt=replace(wanted.prompt, token_ids=(*wanted.prompt.token_ids, *tokens)))


def test_a_shallow_prompt_is_deepened_and_serves_full_depth(own: Own, prompt_maps: Path) -> None:
    service = own(
        prompt_exit="layer=4:tail=8:first=2",
        prefetch="deepen",
        artefacts=str(prompt_maps),
        strategies=("fixed:layer=4",),
    )
    wanted = job(service, "".join(PROMPTS), strategy="full")
    length = len(wanted.prompt.token_ids)
    first = ask(service, wanted)
    report = early_exit_report(first)
    assert (report["prompt_exit"], report["prompt_tokens_shallow"]) == (RULE, length)
    assert ids(first) != alone(service, wanted).token_ids
    until(lambda: counted(service, "deepened") == length)
    for decode in ("lossless", "lossy"):
        later = behind(job(service, "".join(PROMPTS), strategy="full", decode=decode), *ids(first), 9)
        done = ask(service, later)
        report = early_exit_report(done)
        assert done.prompt_reused >= length
        assert ids(done) == alone(service, replace(later, setting=job(service, strategy="full").setting)).token_ids
    assert early_exit_report(ask(service, job(service, decode="lossless")))["prompt_exit"] is None


def test_what_was_predicted_is_there_when_it_is_typed(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "Timing", lambda: Timing(measures=False))  # further rows are free
    service = own(prefetch="draft", decode="lossless+suffix", strategies=("fixed:layer=4",))
    wanted = job(service, strategy="full")
    first = ask(service, wanted)
    until(lambda: counted(service, "drafted") == DRAFTED)
    time.sleep(0.3)
    assert counted(service, "drafted") == DRAFTED, "bounded"
    ahead = alone(service, replace(wanted, max_new_tokens=8 + DRAFTED)).token_ids
    assert ahead[:8] == ids(first)
    later = behind(wanted, *ahead[:12])
    done = ask(service, later)
    assert ids(done) == alone(service, later).token_ids
    assert done.prompt_reused == len(later.prompt.token_ids) - 1
    assert (done.work.verifications, done.work.accepted_tokens, counted(service, "used")) == (1, 6, 6)
    assert service.metrics.registry.get_sample_value("early_exit_prefetch_seconds_total") > 0
    foreign = run(service, replace(later, owner="you"))[0]
    assert (foreign.prompt_reused, counted(service, "used")) == (0, 6)


def test_a_request_waits_for_one_piece_at_most(own: Own, step: Any) -> None:
    service = own(prefetch="draft", decode="lossless+suffix", strategies=("fixed:layer=4",))
    steps: list[int] = []

    def slowly(batch: OpenBatch) -> None:
        if not service.running:
            steps.append(len(batch.running))
            time.sleep(0.1)

    step(slowly)
    wanted = job(service, strategy="full")

    async def scene() -> list[Finished]:
        first = await collect(service, replace(wanted, owner="me"))
        while not steps:
            await asyncio.sleep(0.01)
        begun = len(steps)
        second = await collect(service, replace(job(service, PROMPTS[1], strategy="full"), owner="me"))
        assert len(steps) <= begun + 1
        return [first, second]

    first, second = asyncio.run(asyncio.wait_for(scene(), 60))
    assert second.queue_s < 0.3
    assert ids(first) == alone(service, wanted).token_ids
    assert ids(second) == alone(service, job(service, PROMPTS[1], strategy="full")).token_ids
    assert set(steps) == {1}


def test_a_draft_that_fails_in_idle_time_takes_nobody_with_it(
    own: Own, plug_in: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    plug_in(
        "short_tempered",
        """
        from harness.contracts import DraftRule, DraftSource

        @dataclass(frozen=True)
        class Outside(DraftRule, DraftSource):
            recalls = True
            longest: int = 0

            def start(self, model, batch):
                return self

            def propose(self, draft, max_tokens):
                if len(draft.prompt) > self.longest:
                    raise ValueError("not today")
                return []
        """,
        DRAFTS,
    )
    length = len(job(own()).prompt.token_ids)
    service = own(prefetch="draft", decode=f"lossless+short_tempered:longest={length}", strategies=("fixed:layer=4",))
    wanted = job(service, strategy="full")
    first = ask(service, wanted)
    until(lambda: "a draft in idle time failed" in caplog.text)
    again = ask(service, wanted)
    assert ids(first) == ids(again) == alone(service, wanted).token_ids
    assert service.state == "ready"
