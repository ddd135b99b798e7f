"""One engine, many requests: each gets what it would get alone, and nobody's trouble is another's."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.contracts.stops import Cursor, NamedStop, RowStop
from harness.decoding.engine import Engine
from harness.decoding.generation import Transcript
from harness.decoding.loop import OpenBatch
from harness.errors import HarnessError
from harness.metering.estimate import Estimate
from harness.models.model import ResolvedModel, resolve
from harness.registry import KV_POLICIES
from harness.serving.completions import (
    DrainingError,
    Finished,
    GenerationError,
    InvalidRequestError,
    Job,
    LoadingError,
    OverloadedError,
)
from harness.serving.config import ServeConfig
from harness.serving.service import Service
from tests.serving.conftest import PROMPTS, alone, collect, ids, job, ready, run

Own = Callable[..., Service]
Step = Callable[[Callable[[OpenBatch], None]], None]


@pytest.fixture(scope="module")
def service(serve_config: Callable[..., ServeConfig]) -> Iterator[Service]:
    with ready(serve_config()) as service:
        yield service


def slow(seconds: float) -> Callable[[OpenBatch], None]:
    return lambda batch: time.sleep(seconds)


def raises(*given: Any, **more: Any) -> None:
    raise MemoryError("out of memory")


MIXED: list[dict[str, Any]] = [
    {}, {"threshold": 0.3}, {"strategy": "full"}, {"strategy": "fixed", "layer": 6}, {"strategy": "random"},
    {"strategy": "patience", "patience": 2},
]  # fmt: skip


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_requests_at_the_same_time_get_what_each_gets_alone(own: Own, kv: str) -> None:
    service, drawn = own(kv=kv), random.Random(3)
    tokenizer = resolve(service.config.request()).tokenizer
    jobs = [
        job(service, drawn.choice(PROMPTS) * drawn.randrange(1, 4), drawn.randrange(1, 24), seed=n, **MIXED[n % 6])
        for n in range(18)
    ]
    for wanted, done in zip(jobs, run(service, *jobs), strict=True):
        expected = alone(service, wanted)
        assert ids(done) == expected.token_ids
        assert [token.exit_layer for token in done.tokens] == expected.exit_layers
        assert done.text == tokenizer.decode([t for t in expected.token_ids if t != 0])
        assert done.work.counts == expected.counts
        assert done.ending == ("eos" if expected.finish_reason == "eos" else "length")
        assert done.setting is wanted.setting
        assert 0 <= done.queue_s <= done.ttft_s <= done.total_s
        assert done.energy_j is not None
        assert done.energy_j > 0
        assert done.energy_source == "estimate"
        assert all(token.logprob <= 1e-6 for token in done.tokens)


def test_a_stop_text_ends_it_there(service: Service) -> None:
    (free,) = run(service, job(service, tokens=24))
    middle = free.text[4:7]
    where = free.text.index(middle)
    for keep, text in ((False, free.text[:where]), (True, free.text[: where + 3])):
        (done,) = run(service, job(service, tokens=24, stop=(middle, "never"), keep_stop=keep))
        assert (done.text, done.ending) == (text, "stop")


def test_a_strategy_ends_its_own_request(own: Own, plug_in: Callable[..., None]) -> None:
    plug_in(
        "ender",
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            def should_exit(self, view):
                view.stop(torch.tensor([len(made) >= 4 for made in view.token_ids]))
                return torch.zeros(len(view.rows), dtype=torch.bool)
        """,
    )
    service = own(strategies=("ender", "full"))
    how = (("full", "lossy"), ("ender", "lossy"), ("ender", "lossless"))
    jobs = [job(service, tokens=9, strategy=name, decode=decode) for name, decode in how]
    whole, ended, lossless = run(service, *jobs)
    assert ended.ending == "strategy"
    assert ids(ended) == ids(whole)[:4]
    assert (lossless.text, lossless.ending) == (whole.text, whole.ending)
    assert run(service, jobs[1])[0].text == ended.text  # its row was freed


# --------------------------------------------------------------------------------------------- queue, time, and leaving


def test_one_who_goes_away_frees_the_row_within_a_token(own: Own, step: Step) -> None:
    service, steps = own(batch_size=1, max_queue=0), list[int]()
    step(lambda batch: (steps.append(1), time.sleep(0.01))[0])

    async def scene() -> Finished:
        ticket = service.submit(job(service, tokens=48))
        pieces = aiter(ticket)
        await anext(pieces)
        with pytest.raises(OverloadedError, match="1 requests run and 0 wait"):
            service.submit(job(service))
        for _ in range(2):
            await anext(pieces)
        ticket.cancel()
        return await collect(service, job(service, tokens=2))  # who asks again finds the place that was given up

    done = asyncio.run(scene())
    assert len(steps) < 12  # not all of its 48 were made
    assert len(done.tokens) == 2
    assert service.running == service.waiting == 0


def test_the_queue_is_bounded_and_what_is_beyond_is_refused(own: Own) -> None:
    service = own(batch_size=2, max_queue=3)

    async def scene() -> list[Any]:
        tickets: list[Any] = []
        while len(tickets) < 5:  # two that decode, three that wait
            tickets.append(service.submit(job(service, tokens=24)))
        with pytest.raises(OverloadedError, match="wait, which is the limit"):
            service.submit(job(service, tokens=24))
        return [[piece async for piece in ticket][-1] for ticket in tickets]

    endings = asyncio.run(scene())
    assert all(isinstance(ending, Finished) for ending in endings)


def test_a_request_that_waits_too_long_is_refused_and_one_that_runs_too_long_ends(own: Own, step: Step) -> None:
    service = own(batch_size=1, deadline_s=0.3)
    step(slow(0.05))
    done, late = run(service, *(job(service, tokens=48) for _ in range(2)))
    assert done.ending == "deadline"
    assert 1 <= len(done.tokens) < 20
    assert isinstance(late, OverloadedError)


def test_many_short_requests_are_as_late_as_long_ones(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    service, prefill = own(batch_size=1, deadline_s=0.3), OpenBatch.prefill
    monkeypatch.setattr(OpenBatch, "prefill", lambda batch, *given: (time.sleep(0.05), prefill(batch, *given))[1])
    endings = run(service, *(job(service, tokens=1) for _ in range(20)))
    assert isinstance(endings[-1], OverloadedError)
    assert 1 <= sum(not isinstance(ending, Exception) for ending in endings) < 12


@pytest.mark.parametrize("kv", ["propagate", "none"])
def test_a_request_may_limit_its_own_time_but_gets_a_whole_line(own: Own, kv: str) -> None:
    service, drawn = own(kv=kv), random.Random(0)
    ended = []
    for text in ("".join(drawn.choice("ab(x):\n =") for _ in range(9)) for _ in range(40)):
        free, done = (run(service, job(service, text, tokens=24, **limit))[0] for limit in ({}, {"generate_s": 0.0}))
        if done.ending == "deadline":
            assert done.text.count("\n") >= 1
            assert "\n" not in "".join(token.text for token in done.tokens[:-1])
            assert free.text.startswith(done.text)
            ended.append(len(done.tokens))
        else:
            assert done.text == free.text
        if len(ended) == 3:
            break
    assert ended
    assert min(ended) < 24


def test_a_ticket_outlives_its_loop(service: Service) -> None:
    """A loop that is closed while its request runs takes nothing down."""

    async def leave() -> None:
        service.submit(job(service, tokens=24))

    asyncio.run(leave())
    assert len(run(service, job(service, tokens=3))[0].tokens) == 3


def test_what_is_read_and_made_is_logged_only_when_asked(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "harness.serving.prompts")
    run(own(), job(own(), tokens=2))
    assert not caplog.messages
    loud = own(log_prompts=True)
    (done,) = run(loud, job(loud, tokens=2))
    loud.drain()
    assert loud.close()  # the client has its answer before the log has it
    assert [json.loads(part) for part in caplog.messages[0].split(" -> ")] == [PROMPTS[0], done.text]


# ------------------------------------------------------------------------------------------------------------- failures


def test_an_exception_in_the_engine_fails_who_runs_and_the_next_one_works(own: Own, step: Step) -> None:
    service = own()

    def broken(batch: OpenBatch) -> None:
        if len(batch.running) == 2:
            raise RuntimeError("a kernel\nfailed")

    step(broken)
    for error in run(service, job(service), job(service)):
        assert isinstance(error, GenerationError)
        assert str(error) == "generation failed: RuntimeError: a kernel failed."
    assert ids(run(service, job(service))[0]) == alone(service, job(service)).token_ids


def test_a_strategy_that_fails_takes_nobody_with_it(own: Own, plug_in: Callable[..., None]) -> None:
    plug_in(
        "moody",
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            def should_exit(self, view):
                if any(len(tokens) > 2 for tokens in view.token_ids):
                    raise ValueError("not today")
                return torch.zeros(len(view.rows), dtype=torch.bool)
        """,
    )
    service = own(strategies=("confidence", "moody"))
    done, error = run(service, job(service, tokens=12), job(service, tokens=12, strategy="moody"))
    assert len(done.tokens) > 1
    assert isinstance(error, GenerationError)
    assert "not today" in str(error)
    assert service.running == 0


def test_where_there_is_no_room_for_another_batch_a_request_fails_and_the_next_one_tries_again(
    own: Own, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own()
    expected = alone(service, job(service))
    with monkeypatch.context() as broken:
        broken.setattr(OpenBatch, "step", raises)
        broken.setattr(Engine, "open", raises)
        for _ in range(2):  # the step fails, then what would open anew
            (error,) = run(service, job(service))
            assert "smaller --batch-size" in str(error)
    assert ids(run(service, job(service))[0]) == expected.token_ids


@pytest.mark.parametrize("broken", ["metrics", "meter", "text", "ending"])
def test_whatever_fails_around_the_engine_costs_one_request_at_most(
    own: Own, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    service = own()
    where: tuple[Any, str] = {
        "metrics": (service.metrics, "finished"),
        "meter": (Estimate, "begin"),
        "text": (Transcript, "follow"),
        "ending": (Transcript, "finish"),
    }[broken]
    with monkeypatch.context() as patch:
        patch.setattr(*where, raises)
        for ending in run(service, job(service, tokens=20), job(service, PROMPTS[1], tokens=12)):
            if broken in ("metrics", "meter"):  # nobody's completion depends on them
                assert len(ending.tokens) > 1
                assert (ending.energy_j is None) == (broken == "meter")
            else:
                assert isinstance(ending, GenerationError)
    assert ids(run(service, job(service))[0]) == alone(service, job(service)).token_ids
    assert service.running == service.waiting == 0


def test_one_text_that_cannot_be_spelled_takes_nobody_with_it(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    service, follow = own(), Transcript.follow

    def picky(self: Transcript, token_ids: Sequence[int]) -> bool:
        if follow(self, token_ids):
            raise IndexError("no such piece")
        return False

    (free,) = run(service, job(service, tokens=20))
    monkeypatch.setattr(Transcript, "follow", picky)
    done, error = run(service, job(service, tokens=20), job(service, tokens=20, stop=(free.text[4:7],)))
    assert ids(done) == ids(free)
    assert isinstance(error, GenerationError)
    assert "no such piece" in str(error)


def test_a_request_whose_logits_are_not_finite_fails_and_the_one_beside_it_does_not(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding is NaN, as weights in memory become that overflow for some prompts."""
    sound, lost = PROMPTS[0], PROMPTS[3]
    service = own()
    made = ids(run(service, job(service, sound, 6, strategy="full"))[0])
    read = {text: service.encode(text, None, truncate=False).token_ids for text in (sound, lost)}
    bad = next(token for token in read[lost] if token not in {*read[sound], *made})
    load = ResolvedModel.load

    def poisoned(*given: Any, **more: Any) -> Any:
        loaded = load(*given, **more)
        embed = loaded.backbone.embed

        def overflown(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            states = embed(token_ids, positions).clone()
            states[token_ids == bad] = math.nan
            return states

        return replace(loaded, backbone=replace(loaded.backbone, embed=overflown))

    monkeypatch.setattr(ResolvedModel, "load", poisoned)
    service = own()
    error, done = run(service, *(job(service, text, 6, strategy="full") for text in (lost, sound)))
    assert isinstance(error, GenerationError)
    assert str(error).startswith("generation failed: logits of layer 12 are not finite at token 1: ")
    assert ids(done) == made
    assert service.running == 0


def test_a_defect_of_the_thread_is_told_to_everybody_and_takes_nothing_more(
    own: Own, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, failed = own(batch_size=1), list[str]()
    step(slow(0.02))

    def once(kind: str) -> None:
        failed.append(kind)
        if len(failed) == 1:
            raise MemoryError

    monkeypatch.setattr(service.metrics, "failed", once)

    async def scene() -> list[Any]:
        first = service.submit(job(service, tokens=48))
        waiting = [asyncio.ensure_future(collect(service, job(service))) for _ in range(2)]
        await anext(aiter(first))
        first.cancel()
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)

    assert [type(error) for error in asyncio.run(scene())] == [GenerationError] * 2
    assert service.close()
    assert failed == ["cancelled", "generation", "generation"]
    assert service.state == "failed"
    with pytest.raises(LoadingError, match="the engine stopped"):
        service.submit(job(service))


# ------------------------------------------------------------------------------------------------- loading and draining


@pytest.mark.parametrize("drain_s", [15.0, 0.1])
def test_draining_takes_nothing_new_and_finishes_what_was_taken_or_tells_it(
    own: Own, step: Step, drain_s: float
) -> None:
    service = own(batch_size=1, drain_s=drain_s)
    step(slow(0.01))

    async def scene() -> list[Any]:
        taken = [asyncio.ensure_future(collect(service, job(service, tokens=24))) for _ in range(3)]
        await asyncio.sleep(0.05)
        service.drain()
        with pytest.raises(DrainingError):
            service.submit(job(service))
        return await asyncio.gather(*taken, return_exceptions=True)

    endings = asyncio.run(scene())
    if drain_s > 1:
        assert [len(done.tokens) for done in endings] == [24] * 3
    else:
        assert isinstance(endings[-1], DrainingError)
    assert service.close()


def test_it_takes_nothing_while_it_loads_and_says_why_it_failed(
    serve_config: Callable[..., ServeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load = threading.Event()

    def never(*given: Any, **more: Any) -> None:
        may_load.wait(30)
        raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(ResolvedModel, "module", never)
    service = Service(serve_config())
    service.start()
    wanted = job(service)
    assert service.state == "loading"
    with pytest.raises(LoadingError, match="being loaded"):
        service.submit(wanted)
    may_load.set()
    limit = time.monotonic() + 30
    while service.state == "loading" and time.monotonic() < limit:
        time.sleep(0.02)
    assert service.state == "failed"
    assert "smaller --batch-size" in (service.failure or "")
    with pytest.raises(LoadingError, match="could not be loaded"):
        service.submit(wanted)
    service.drain()
    assert service.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 256}, "no room"),
        ({"max_prompt_tokens": 250}, "at most 208"),
        ({"kv_input": "shortcut"}, "shortcut"),
        ({"strategies": ("nothing",)}, "nothing"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"energy": "rapl:x"}, "rapl"),
        ({"device": "tpu"}, "tpu"),
        ({"max_queue": -1}, "max_queue"),
        ({"max_que": 1}, "Did you mean 'max_queue'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(
    serve_config: Callable[..., ServeConfig], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(HarnessError, match=words) as error:
        Service(serve_config(**settings))
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_that_cannot_be_read_is_refused(service: Service) -> None:
    for prompt, words in (
        ("", "empty"),
        ([], "empty"),
        ([5, 320], "token id 320 is outside"),
        ([-1], "token id -1 is outside"),
        ("x = 1\n" * 80, "tokens, and 208 are allowed"),
        ("x = 1\n" * 40_000, "characters, which is more"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            service.encode(prompt, None, truncate=False)


def test_a_prompt_that_is_too_long_may_lose_its_beginning(service: Service) -> None:
    tokenizer = resolve(service.config.request()).tokenizer
    for text in ("".join(f"x{n} = {n}\n" for n in range(60)), "".join(f"x{n} = {n}\n" for n in range(9000))):
        prompt = service.encode(text, None, truncate=True)
        assert list(prompt.token_ids) == tokenizer.encode(text)[-208:]
        assert prompt.truncated > 0
    assert "/" not in service.model_name, "a client sees a folder's name and never its path"


@pytest.fixture(scope="module")
def filler(
    make_model: Callable[..., Path], tiny_tokenizer: Any, serve_config: Callable[..., ServeConfig]
) -> Iterator[Service]:
    """A service whose tokenizer can fill in the middle."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"], special_tokens=True)
    folder = make_model("llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    with ready(serve_config(model=str(folder))) as service:
        yield service


def test_a_suffix_is_read_where_the_tokenizer_can(filler: Service) -> None:
    assert filler.fim
    tokenizer = resolve(filler.config.request()).tokenizer
    before, after = tokenizer.encode("def f(x):\n"), tokenizer.encode("\n    return y")
    prompt = filler.encode("def f(x):\n", "\n    return y", truncate=False)
    start, hole, middle = tokenizer.wrapped.convert_tokens_to_ids(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    assert prompt.token_ids == (start, *before, hole, *after, middle)
    assert (prompt.suffix, prompt.before) == ("used", tuple(before))
    assert filler.encode("", "\n    return y", truncate=False).suffix == "used"
    assert filler.encode("x", None, truncate=False).suffix == "none"
    # As llm-vscode and Continue send it, set up by --print-config: markers within the prompt, and no suffix.
    sent = filler.encode("<fim_prefix>def f(x):\n<fim_suffix>\n    return y<fim_middle>", None, truncate=False)
    assert sent == prompt
    assert filler.encode("<fim_prefix>def f(x):\n", None, truncate=False).suffix == "none"
    wanted = Job(prompt, filler.settings.default, 12)
    (done,) = run(filler, wanted)
    ends = tokenizer.eos_token_ids | filler.fim.end_token_ids
    assert all(token.token_id not in ends for token in done.tokens[:-1])
    assert ids(done) == alone(filler, wanted).token_ids[: len(done.tokens)]


@pytest.mark.parametrize("suffix", ["\n    return y", None])
def test_a_stop_rule_reads_the_code_before_the_cursor_alone(filler: Service, suffix: str | None) -> None:
    class Notes(RowStop):
        def over(self, token_ids: Sequence[int]) -> bool:
            return False

    def start(cursor: Cursor) -> NamedStop:
        seen.append(cursor.before)
        return NamedStop("notes", Notes())

    seen: list[str] = []
    notes: Any = SimpleNamespace(written="notes", start=start)
    setting = replace(filler.settings.default, stop=notes)
    run(filler, Job(filler.encode("def f(x):\n", suffix, truncate=False), setting, 2))
    assert seen == ["def f(x):\n"]


def test_what_is_far_from_the_cursor_goes_when_prefix_and_suffix_do_not_fit(filler: Service) -> None:
    assert filler.fim
    tokenizer = resolve(filler.config.request()).tokenizer
    before, after = ("".join(f"x{n} = {n}\n" for n in range(80)), "".join(f"y{n} = {n}\n" for n in range(80)))
    with pytest.raises(InvalidRequestError, match="allowed"):
        filler.encode(before, after, truncate=False)
    prompt = filler.encode(before, after, truncate=True)
    assert len(prompt.token_ids) == filler.max_prompt_tokens
    assert filler.encode(1000 * before, 1000 * after, truncate=True).token_ids == prompt.token_ids
    hole = prompt.token_ids.index(filler.fim.suffix)
    assert list(prompt.token_ids[1:hole]) == tokenizer.encode(before)[1 - hole :]
    assert prompt.before == prompt.token_ids[1:hole]
    kept = prompt.token_ids[hole + 1 : -1]
    assert list(kept) == tokenizer.encode(after)[: len(kept)]
    assert prompt.truncated > 0


def test_a_suffix_is_refused_or_ignored_and_said(service: Service, own: Own) -> None:
    with pytest.raises(InvalidRequestError, match="fill-in-the-middle"):
        service.encode("a", "b", truncate=False)
    assert service.encode("a", "", truncate=False).suffix == "none"
    assert own(suffix="ignore").encode("a", "b", truncate=False).suffix == "ignored"
