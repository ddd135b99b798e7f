"""One engine, many requests: each gets what it would get alone, and nobody's trouble is another's."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.contracts.stops import Cursor
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
        for n in range(12)
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


# --------------------------------------------------------------------------------------------- queue, time, and leaving


def test_one_who_goes_away_frees_the_row_within_a_token(own: Own, step: Step) -> None:
    service, steps = own(batch_size=1, max_queue=0), list[int]()
    step(lambda batch: (steps.append(1), time.sleep(0.01))[0])

    async def scene() -> Finished:
        ticket = service.submit([job(service, tokens=48)])
        pieces = aiter(ticket)
        await anext(pieces)
        with pytest.raises(OverloadedError, match="1 requests run and 0 wait"):
            service.submit([job(service)])
        for _ in range(2):
            await anext(pieces)
        ticket.cancel()
        return await collect(service, job(service, tokens=2))  # who asks again finds the place that was given up

    done = asyncio.run(scene())
    assert len(steps) < 12  # not all of its 48 were made
    assert len(done.tokens) == 2
    assert service.running == service.waiting == 0


def test_jobs_of_a_request_come_together_are_queued_all_or_none_and_fail_together(own: Own, step: Step) -> None:
    service = own(batch_size=2, max_queue=1)

    async def scene() -> list[tuple[int, Any]]:
        with pytest.raises(OverloadedError, match="0 requests run and 0 wait, which is the limit"):
            service.submit([job(service)] * 4)
        both = [job(service, tokens=5), job(service, PROMPTS[1], tokens=5)]
        pieces = [item async for item in service.submit(both)]
        step(lambda batch: raises() if len(batch.running) == 2 else None)
        with pytest.raises(GenerationError):
            [item async for item in service.submit(both)]
        return pieces

    pieces = asyncio.run(scene())
    assert [place for place, _ in pieces[:6]] != [0] * 6
    for place, text in enumerate(PROMPTS[:2]):
        *tokens, done = [piece for at, piece in pieces if at == place]
        assert [token.token_id for token in tokens] == alone(service, job(service, text, tokens=5)).token_ids
        assert isinstance(done, Finished)


def test_a_request_that_waits_too_long_is_refused_and_one_that_runs_too_long_ends(own: Own, step: Step) -> None:
    service = own(batch_size=1, deadline_s=0.3)
    step(slow(0.05))
    done, late = run(service, *(job(service, tokens=48) for _ in range(2)))
    assert done.ending == "deadline"
    assert 1 <= len(done.tokens) < 20
    assert isinstance(late, OverloadedError)


def test_a_request_may_limit_its_own_time_but_gets_a_whole_line(service: Service) -> None:
    drawn, ended = random.Random(0), []
    for text in ("".join(drawn.choice("ab(x):\n =") for _ in range(9)) for _ in range(12)):
        free, done = (run(service, job(service, text, 24, **limit))[0] for limit in ({}, {"generate_s": 1e-9}))
        assert free.text.startswith(done.text)
        if done.ending == "deadline":
            assert "\n" in done.text
            assert "\n" not in "".join(token.text for token in done.tokens[:-1])
            ended.append(len(done.tokens))
    assert ended
    assert min(ended) < 24


def test_what_is_read_and_made_is_logged_only_when_asked(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "harness.serving.prompts")
    quiet, loud = own(), own(log_prompts=True)
    run(quiet, job(quiet, tokens=2))
    assert not caplog.messages
    (done,) = run(loud, job(loud, tokens=2))
    loud.drain()
    assert loud.close()  # the client has its answer before the log has it
    assert [json.loads(part) for part in caplog.messages[0].split(" -> ")] == [PROMPTS[0], done.text]


# ------------------------------------------------------------------------------------------------------------- failures


def test_whatever_fails_around_the_engine_costs_one_request_at_most(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    service = own()
    places: dict[str, tuple[Any, str]] = {
        "metrics": (service.metrics, "finished"),
        "meter": (Estimate, "begin"),
        "row": (OpenBatch, "row_for"),
        "text": (Transcript, "follow"),
        "ending": (Transcript, "finish"),
        "step": (OpenBatch, "step"),
    }
    for broken, where in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(*where, raises)
            if broken == "step":  # and there is no room for another batch
                patch.setattr(Engine, "open", raises)
            for ending in run(service, job(service, tokens=20), job(service, PROMPTS[1], tokens=12)):
                if broken in ("metrics", "meter"):  # nobody's completion depends on them
                    assert len(ending.tokens) > 1
                    assert (ending.energy_j is None) == (broken == "meter")
                else:
                    assert isinstance(ending, GenerationError), broken
                    assert "serve with a smaller --batch-size" in str(ending)
        assert ids(run(service, job(service))[0]) == alone(service, job(service)).token_ids
        assert service.running == service.waiting == 0


def test_who_fails_or_ends_itself_leaves_those_beside_it_alone(
    own: Own, plug_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy raises, another one ends its request, and an embedding is NaN, as weights become that overflow."""
    plug_in(
        "moody",
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            raises: bool = False
            def should_exit(self, view):
                late = torch.tensor([len(made) >= 4 for made in view.token_ids])
                if self.raises and late.any():
                    raise ValueError("not today")
                view.stop(late)
                return torch.zeros(len(view.rows), dtype=torch.bool)
        """,
    )
    load, lost = ResolvedModel.load, PROMPTS[3]
    plain = own(strategies=("moody", "full"))
    whole = ids(run(plain, job(plain, tokens=9, strategy="full"))[0])
    spared = {*plain.encode(PROMPTS[0], None, truncate=False).token_ids, *whole}
    bad = next(one for one in plain.encode(lost, None, truncate=False).token_ids if one not in spared)

    def poisoned(*given: Any, **more: Any) -> Any:
        loaded = load(*given, **more)
        embed = loaded.backbone.embed

        def overflown(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return embed(token_ids, positions).masked_fill((token_ids == bad)[..., None], math.nan)

        return replace(loaded, backbone=replace(loaded.backbone, embed=overflown))

    monkeypatch.setattr(ResolvedModel, "load", poisoned)
    service = own(strategies=("moody", "full"))
    wanted: list[dict[str, Any]] = [{"text": lost, "strategy": "full"}, {"strategy": "moody", "raises": True}]
    wanted += [{"strategy": "moody"}, {"strategy": "full"}]
    overflowed, failed, ended, sound = run(service, *(job(service, tokens=9, **how) for how in wanted))
    assert str(overflowed).startswith("generation failed: logits of layer 12 are not finite at token 1: ")
    assert isinstance(failed, GenerationError)
    assert "not today" in str(failed)
    assert (ended.ending, ids(ended), ids(sound)) == ("strategy", whole[:4], whole)
    assert run(service, job(service, tokens=9, strategy="moody", decode="lossless"))[0].text == sound.text
    assert service.running == service.waiting == 0


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
        first = service.submit([job(service, tokens=48)])
        waiting = [asyncio.ensure_future(collect(service, job(service))) for _ in range(2)]
        await anext(aiter(first))
        first.cancel()
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)

    assert [type(error) for error in asyncio.run(scene())] == [GenerationError] * 2
    assert service.close()
    assert failed == ["cancelled", "generation", "generation"]
    assert service.state == "failed"
    with pytest.raises(LoadingError, match="the engine stopped"):
        service.submit([job(service)])


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
            service.submit([job(service)])
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
        service.submit([wanted])
    may_load.set()
    limit = time.monotonic() + 30
    while service.state == "loading" and time.monotonic() < limit:
        time.sleep(0.02)
    assert service.state == "failed"
    assert "smaller --batch-size" in (service.failure or "")
    with pytest.raises(LoadingError, match="could not be loaded"):
        service.submit([wanted])
    service.drain()
    assert service.close()


def test_what_cannot_be_served_is_refused_before_anything_is_loaded(serve_config: Callable[..., ServeConfig]) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"max_new_tokens": 256}, "leaves 0 of the 256 positions"),
        ({"max_prompt_tokens": 250}, "leaves 208 of the 256 positions"),
        ({"kv_input": "shortcut"}, "shortcut"),
        ({"strategies": ("nothing",)}, "nothing"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"energy": "rapl:x"}, "rapl"),
        ({"stop": "block"}, "language"),
        ({"prompt_exit": "layer=4", "decode": "lossless"}, "--prompt-exit is for lossy requests"),
        ({"prompt_exit": "layer=4"}, "harness train prompt-exit"),
        ({"prefetch": "deepen"}, "Add --prompt-exit"),
        ({"prefetch": "draft"}, "Add --decode lossless[+]suffix"),
        ({"prefetch": "draft", "decode": "lossless+suffix", "kept_prompts": 0}, "--kept-prompts is 0"),
        ({"stop": "excess"}, "there is no excess.json"),
    ]
    for settings, words in refusals:
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
    ):
        with pytest.raises(InvalidRequestError, match=words):
            service.encode(prompt, None, truncate=False)


def test_a_prompt_that_is_too_long_may_lose_its_beginning(service: Service) -> None:
    tokenizer = resolve(service.config.request()).tokenizer
    text = "".join(f"x{n} = {n}\n" for n in range(60))
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
    wanted, seen = Job(prompt, filler.settings.default, 12), list[str]()

    def start(cursor: Cursor) -> Any:
        seen.append(cursor.before)
        return SimpleNamespace(over=lambda token_ids: False, reads_states=False)

    stop: Any = SimpleNamespace(name="notes", written="notes", rule=SimpleNamespace(start=start))
    (done,) = run(filler, replace(wanted, setting=replace(wanted.setting, stop=stop)))
    assert seen == ["def f(x):\n"], "a stop rule reads the code before the cursor alone"
    ends = tokenizer.eos_token_ids | filler.fim.end_token_ids
    assert all(token.token_id not in ends for token in done.tokens[:-1])
    assert ids(done) == alone(filler, wanted).token_ids[: len(done.tokens)]


def test_what_is_far_from_the_cursor_goes_when_prefix_and_suffix_do_not_fit(filler: Service) -> None:
    assert filler.fim
    tokenizer = resolve(filler.config.request()).tokenizer
    before, after = ("".join(f"x{n} = {n}\n" for n in range(80)), "".join(f"y{n} = {n}\n" for n in range(80)))
    with pytest.raises(InvalidRequestError, match="allowed"):
        filler.encode(before, after, truncate=False)
    prompt = filler.encode(before, after, truncate=True)
    assert len(prompt.token_ids) == filler.max_prompt_tokens
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
