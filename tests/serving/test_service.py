"""One engine, many requests: each gets what it would get alone, and nobody's trouble is another's."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.decoding.generation import Token, Transcript
from harness.errors import ConfigError, HarnessError
from harness.registry import KV_POLICIES
from harness.serving.config import ServeConfig
from harness.serving.failures import (
    DrainingError,
    GenerationError,
    InvalidRequestError,
    LoadingError,
    OverloadedError,
    ServingError,
)
from harness.serving.jobs import Finished, Job
from harness.serving.service import Service
from tests.serving.conftest import ready

PROMPTS = ("def load_path(items):\n", "for item in", "x = 1\ny = ", "return merge(total, 'size')\n    ")


@pytest.fixture(scope="module")
def service(serve_config: Callable[..., ServeConfig]) -> Iterator[Service]:
    with ready(serve_config()) as service:
        yield service


def job(service: Service, text: str = PROMPTS[0], tokens: int = 8, **given: Any) -> Job:
    facts = {key: given.pop(key) for key in ("stop", "keep_stop", "generate_s", "seed") if key in given}
    prompt = service.encode(text, None, truncate=False)
    return Job(prompt, service.settings.resolve(given), tokens, **facts)


async def collect(service: Service, wanted: Job) -> tuple[list[Token], Finished]:
    pieces = [piece async for piece in service.submit(wanted)]
    *tokens, done = pieces
    assert isinstance(done, Finished)
    assert all(isinstance(token, Token) for token in tokens)
    assert tuple(tokens) == done.tokens
    return tokens, done  # type: ignore[return-value]


def alone(service: Service, wanted: Job, kv: str = "propagate") -> Any:
    """The same request through the engine's closed batch."""
    return service._worker._engine.decode(  # type: ignore[union-attr]
        [wanted.prompt.token_ids], wanted.setting.strategy, kv=kv, max_new_tokens=[wanted.max_new_tokens],
        seeds=[wanted.seed], eos_token_ids=service._tokenizer.eos_token_ids,
    )[0]  # fmt: skip


MIXED: list[dict[str, Any]] = [
    {}, {"threshold": 0.3}, {"strategy": "full"}, {"strategy": "fixed", "layer": 6}, {"strategy": "random"},
    {"strategy": "patience", "patience": 2},
]  # fmt: skip


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_requests_at_the_same_time_get_what_each_gets_alone(own: Callable[..., Service], kv: str) -> None:
    service, drawn = own(kv=kv), random.Random(3)
    jobs = [
        job(
            service,
            drawn.choice(PROMPTS) * drawn.randrange(1, 4),
            drawn.randrange(1, 24),
            seed=number,
            **MIXED[number % 6],
        )
        for number in range(18)
    ]

    async def at_once() -> list[tuple[list[Token], Finished]]:
        return await asyncio.gather(*(collect(service, wanted) for wanted in jobs))

    for wanted, (tokens, done) in zip(jobs, asyncio.run(at_once()), strict=True):
        expected = alone(service, wanted, kv)
        assert [token.token_id for token in tokens] == expected.token_ids
        assert [token.exit_layer for token in tokens] == expected.exit_layers
        assert [token.index for token in tokens] == list(range(len(tokens)))
        assert "".join(token.text for token in tokens) + done.rest == done.text
        assert done.text == service._tokenizer.decode([t for t in expected.token_ids if t != 0])
        assert done.work.counts == expected.counts
        assert done.ending == ("eos" if expected.finish_reason == "eos" else "length")
        assert done.setting is wanted.setting
        assert 0 <= done.queue_s <= done.ttft_s <= done.total_s
        assert done.energy_j is not None
        assert done.energy_j > 0
        assert done.energy_source == "estimate"
        assert all(token.logprob <= 1e-6 for token in tokens)


def test_a_stop_text_ends_it_there(service: Service) -> None:
    _, free = asyncio.run(collect(service, job(service, tokens=24)))
    middle = free.text[4:7]
    where = free.text.index(middle)
    for keep, text in ((False, free.text[:where]), (True, free.text[: where + 3])):
        tokens, done = asyncio.run(collect(service, job(service, tokens=24, stop=(middle, "never"), keep_stop=keep)))
        assert (done.text, done.ending) == (text, "stop")
        assert "".join(token.text for token in tokens) + done.rest == text


def test_one_who_goes_away_frees_the_row_within_a_token(own: Callable[..., Service]) -> None:
    service = own(batch_size=1)

    async def scene() -> tuple[int, Finished]:
        ticket = service.submit(job(service, tokens=48))
        pieces = aiter(ticket)
        for _ in range(3):
            await anext(pieces)
        other = asyncio.ensure_future(collect(service, job(service, tokens=2)))
        await asyncio.sleep(0)
        ticket.cancel()
        _, done = await other
        left = 0
        while not ticket._pieces.empty():  # type: ignore[attr-defined]
            left += isinstance(ticket._pieces.get_nowait(), Token)  # type: ignore[attr-defined]
        return left, done

    left, done = asyncio.run(scene())
    assert left < 40  # not all of its 45 were made
    assert len(done.tokens) == 2
    assert service.running == service.waiting == 0


def test_the_queue_is_bounded_and_what_is_beyond_is_refused(own: Callable[..., Service]) -> None:
    service = own(batch_size=2, max_queue=3)

    async def scene() -> list[Any]:
        tickets: list[Any] = []
        while len(tickets) < 12:
            try:
                tickets.append(service.submit(job(service, tokens=24)))
            except OverloadedError:
                break
        with pytest.raises(OverloadedError, match="wait, which is the limit"):
            service.submit(job(service, tokens=24))
        return [len(tickets), *[[piece async for piece in ticket][-1] for ticket in tickets]]

    taken, *endings = asyncio.run(scene())
    assert taken == 5  # two that decode, three that wait
    assert all(isinstance(ending, Finished) for ending in endings)


def test_a_request_that_waits_too_long_is_refused_and_one_that_runs_too_long_ends(own: Callable[..., Service]) -> None:
    service = own(batch_size=1, deadline_s=0.3)
    slow(service, 0.05)

    async def scene() -> list[Any]:
        return await asyncio.gather(
            *(collect(service, job(service, tokens=48)) for _ in range(2)), return_exceptions=True
        )

    (_, done), late = asyncio.run(scene())
    assert done.ending == "deadline"
    assert 1 <= len(done.tokens) < 20
    assert isinstance(late, OverloadedError)


@pytest.mark.parametrize("kv", ["propagate", "none"])
def test_a_request_may_limit_its_own_time_but_gets_a_whole_line(own: Callable[..., Service], kv: str) -> None:
    service, drawn = own(kv=kv), random.Random(0)
    ended = []
    for text in ("".join(drawn.choice("ab(x):\n =") for _ in range(9)) for _ in range(40)):
        _, free = asyncio.run(collect(service, job(service, text, tokens=24)))
        tokens, done = asyncio.run(collect(service, job(service, text, tokens=24, generate_s=0.0)))
        assert list(done.tokens) == tokens
        if done.ending == "deadline":
            assert done.text.count("\n") >= 1
            assert "\n" not in "".join(token.text for token in tokens[:-1])
            assert free.text.startswith(done.text)
            ended.append(len(tokens))
        else:
            assert done.text == free.text
        if len(ended) == 3:
            break
    assert ended
    assert min(ended) < 24


def test_what_is_read_and_made_is_logged_only_when_asked(
    own: Callable[..., Service], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "harness.serving.prompts")
    asyncio.run(collect(own(), job(own(), tokens=2)))
    assert not caplog.messages
    loud = own(log_prompts=True)
    _, done = asyncio.run(collect(loud, job(loud, tokens=2)))
    loud.drain()
    assert loud.close()  # the client has its answer before the log has it
    assert [json.loads(part) for part in caplog.messages[0].split(" -> ")] == [PROMPTS[0], done.text]


def slow(service: Service, seconds: float) -> None:
    """Make every step of the engine take so long."""
    batch = service._worker._batch  # type: ignore[union-attr]
    step = batch.step

    def later() -> None:
        time.sleep(seconds)
        step()

    batch.step = later  # type: ignore[method-assign]


def test_an_exception_in_the_engine_fails_who_runs_and_the_next_one_works(own: Callable[..., Service]) -> None:
    service = own()
    expected = alone(service, job(service))

    batch: Any = service._worker._batch  # type: ignore[union-attr]
    step = batch.step

    def broken() -> None:
        if len(batch.running) == 2:
            raise RuntimeError("a kernel\nfailed")
        step()

    batch.step = broken

    async def scene() -> list[Any]:
        both = (collect(service, job(service)) for _ in range(2))
        return await asyncio.gather(*both, return_exceptions=True)

    for error in asyncio.run(scene()):
        assert isinstance(error, GenerationError)
        assert str(error) == "generation failed: RuntimeError: a kernel failed."
    tokens, _ = asyncio.run(collect(service, job(service)))
    assert [token.token_id for token in tokens] == expected.token_ids


def test_a_strategy_that_fails_takes_nobody_with_it(own: Callable[..., Service], plug_in: Callable[..., None]) -> None:
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

    async def scene() -> list[Any]:
        jobs = [job(service, tokens=12), job(service, tokens=12, strategy="moody")]
        return await asyncio.gather(*(collect(service, wanted) for wanted in jobs), return_exceptions=True)

    (_, done), error = asyncio.run(scene())
    assert len(done.tokens) > 1
    assert isinstance(error, GenerationError)
    assert "not today" in str(error)
    assert service.running == 0


def raises(*given: Any, **more: Any) -> None:
    raise MemoryError("out of memory")


def test_where_there_is_no_room_for_another_batch_a_request_fails_and_the_next_one_tries_again(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own()
    expected = alone(service, job(service))
    engine = service._worker._engine  # type: ignore[union-attr]
    service._worker._batch.step = raises  # type: ignore[union-attr,method-assign]
    with monkeypatch.context() as broken:
        broken.setattr(engine, "open", raises)
        for _ in range(2):  # the step fails, then what would open anew
            with pytest.raises(GenerationError, match="smaller --batch-size"):
                asyncio.run(collect(service, job(service)))
    tokens, _ = asyncio.run(collect(service, job(service)))
    assert [token.token_id for token in tokens] == expected.token_ids


@pytest.mark.parametrize("broken", ["metrics", "meter", "text", "ending"])
def test_whatever_fails_around_the_engine_costs_one_request_at_most(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    service = own()
    where = {
        "metrics": (service.metrics, "finished"),
        "meter": (service._meter, "begin"),
        "text": ("harness.decoding.generation.Transcript.follow",),
        "ending": ("harness.decoding.generation.Transcript.finish",),
    }[broken]

    async def scene() -> list[Any]:
        first = asyncio.ensure_future(collect(service, job(service, tokens=20)))
        second = asyncio.ensure_future(collect(service, job(service, PROMPTS[1], tokens=12)))
        return await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 30)

    with monkeypatch.context() as patch:
        patch.setattr(*where, raises)
        for ending in asyncio.run(scene()):
            if broken in ("metrics", "meter"):  # nobody's completion depends on them
                assert len(ending[1].tokens) > 1
                assert (ending[1].energy_j is None) == (broken == "meter")
            else:
                assert isinstance(ending, GenerationError)
    tokens, _ = asyncio.run(collect(service, job(service)))
    assert [token.token_id for token in tokens] == alone(service, job(service)).token_ids
    assert service.running == service.waiting == 0


def test_one_text_that_cannot_be_spelled_takes_nobody_with_it(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own()
    follow = Transcript.follow

    def picky(self: Transcript, token_ids: Sequence[int]) -> bool:
        if self._stop:
            raise IndexError("no such piece")
        return follow(self, token_ids)

    monkeypatch.setattr(Transcript, "follow", picky)

    async def scene() -> list[Any]:
        jobs = [job(service, tokens=20), job(service, tokens=20, stop=("never",))]
        return await asyncio.gather(*(collect(service, wanted) for wanted in jobs), return_exceptions=True)

    (tokens, _), error = asyncio.run(scene())
    assert [token.token_id for token in tokens] == alone(service, job(service, tokens=20)).token_ids
    assert isinstance(error, GenerationError)
    assert "no such piece" in str(error)


def test_a_defect_of_the_thread_is_told_to_everybody_and_takes_nothing_more(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = own(batch_size=1)
    slow(service, 0.02)

    async def scene() -> list[Any]:
        taken = [asyncio.ensure_future(collect(service, job(service, tokens=48))) for _ in range(3)]
        await asyncio.sleep(0.05)
        monkeypatch.setattr(service._worker, "_free_cancelled", raises)
        return await asyncio.wait_for(asyncio.gather(*taken, return_exceptions=True), 30)

    assert {type(error) for error in asyncio.run(scene())} == {GenerationError}
    service._thread.join(10)
    assert service.state == "failed"
    with pytest.raises(LoadingError, match="the engine stopped"):
        service.submit(job(service))


def test_many_short_requests_are_as_late_as_long_ones(own: Callable[..., Service]) -> None:
    service = own(batch_size=1, deadline_s=0.3)
    batch = service._worker._batch  # type: ignore[union-attr]
    prefill = batch.prefill  # type: ignore[union-attr]

    def later(rows: Any, most: int) -> None:
        time.sleep(0.05)
        prefill(rows, most)

    batch.prefill = later  # type: ignore[union-attr,method-assign]

    async def scene() -> list[Any]:
        return await asyncio.gather(
            *(collect(service, job(service, tokens=1)) for _ in range(20)), return_exceptions=True
        )

    endings = asyncio.run(scene())
    assert isinstance(endings[-1], OverloadedError)
    assert 1 <= sum(not isinstance(ending, Exception) for ending in endings) < 12


def test_one_who_asks_again_finds_the_place_that_was_given_up(own: Callable[..., Service]) -> None:
    service = own(batch_size=1, max_queue=0)
    slow(service, 0.02)

    async def scene() -> Finished:
        ticket = service.submit(job(service, tokens=48))
        await anext(aiter(ticket))
        with pytest.raises(OverloadedError, match="1 requests run and 0 wait"):
            service.submit(job(service))
        ticket.cancel()
        return (await collect(service, job(service, tokens=2)))[1]

    assert len(asyncio.run(scene()).tokens) == 2


def test_draining_finishes_what_was_taken_and_takes_nothing_new(own: Callable[..., Service]) -> None:
    service = own(batch_size=1)
    slow(service, 0.01)

    async def scene() -> list[Any]:
        taken = [asyncio.ensure_future(collect(service, job(service, tokens=12))) for _ in range(3)]
        await asyncio.sleep(0.05)
        service.drain()
        with pytest.raises(DrainingError):
            service.submit(job(service))
        return await asyncio.gather(*taken)

    assert [len(done.tokens) for _, done in asyncio.run(scene())] == [12, 12, 12]
    service.close()
    assert not service._thread.is_alive()


def test_what_does_not_finish_in_time_fails_and_says_so(own: Callable[..., Service]) -> None:
    service = own(batch_size=1, drain_s=0.1)
    slow(service, 0.05)

    async def scene() -> list[Any]:
        taken = [asyncio.ensure_future(collect(service, job(service, tokens=48))) for _ in range(2)]
        await asyncio.sleep(0.1)
        service.drain()
        return await asyncio.gather(*taken, return_exceptions=True)

    assert [type(error) for error in asyncio.run(scene())] == [DrainingError, DrainingError]
    service.close()
    assert not service._thread.is_alive()


def test_it_takes_nothing_while_it_loads_and_says_why_it_failed(
    serve_config: Callable[..., ServeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load = threading.Event()

    def never(*given: Any, **more: Any) -> None:
        may_load.wait(30)
        raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("harness.models.model.ResolvedModel.module", never)
    service = Service(serve_config())
    service.start()
    wanted = job(service)
    assert service.state == "loading"
    with pytest.raises(LoadingError, match="being loaded"):
        service.submit(wanted)
    may_load.set()
    service._thread.join(30)
    assert service.state == "failed"
    assert "smaller --batch-size" in (service.failure or "")
    with pytest.raises(LoadingError, match="could not be loaded"):
        service.submit(wanted)
    service.drain()
    service.close()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([], "empty"),
        ([5, 320], "320 is no token"),
        ([-1], "-1 is no token"),
        ("x = 1\n" * 80, "tokens, and 208 are allowed"),
        ("x = 1\n" * 40_000, "characters, which is more"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(service: Service, prompt: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        service.encode(prompt, None, truncate=False)


def test_a_prompt_that_is_too_long_may_lose_its_beginning(service: Service) -> None:
    for text in ("".join(f"x{n} = {n}\n" for n in range(60)), "".join(f"x{n} = {n}\n" for n in range(9000))):
        ids = service._tokenizer.encode(text)
        prompt = service.encode(text, None, truncate=True)
        assert list(prompt.token_ids) == ids[-208:]
        assert prompt.truncated > 0


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
    before, after = filler._tokenizer.encode("def f(x):\n"), filler._tokenizer.encode("\n    return y")
    prompt = filler.encode("def f(x):\n", "\n    return y", truncate=False)
    names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    start, hole, middle = filler._tokenizer.wrapped.convert_tokens_to_ids(names)
    assert prompt.token_ids == (start, *before, hole, *after, middle)
    assert prompt.suffix == "used"
    assert filler.encode("", "\n    return y", truncate=False).suffix == "used"
    assert filler.encode("x", None, truncate=False).suffix == "none"
    wanted = Job(prompt, filler.settings.default, 12)
    tokens, _ = asyncio.run(collect(filler, wanted))
    ends = filler._tokenizer.eos_token_ids | filler.fim.end_token_ids  # type: ignore[union-attr]
    assert all(token.token_id not in ends for token in tokens[:-1])
    assert [token.token_id for token in tokens] == alone(filler, wanted).token_ids[: len(tokens)]


def test_a_prompt_that_the_client_has_marked_ends_where_the_gap_ends(filler: Service) -> None:
    """As llm-vscode and Continue send it, set up by --print-config: markers within the prompt, and no suffix."""
    asked = filler.encode("def f(x):\n", "\n    return y", truncate=False)
    sent = filler.encode("<fim_prefix>def f(x):\n<fim_suffix>\n    return y<fim_middle>", None, truncate=False)
    assert sent == asked
    assert filler.encode("<fim_prefix>def f(x):\n", None, truncate=False).suffix == "none"


def test_what_is_far_from_the_cursor_goes_when_prefix_and_suffix_do_not_fit(filler: Service) -> None:
    before, after = ("".join(f"x{n} = {n}\n" for n in range(80)), "".join(f"y{n} = {n}\n" for n in range(80)))
    with pytest.raises(InvalidRequestError, match="allowed"):
        filler.encode(before, after, truncate=False)
    prompt = filler.encode(before, after, truncate=True)
    assert len(prompt.token_ids) == filler.max_prompt_tokens
    assert filler.encode(1000 * before, 1000 * after, truncate=True).token_ids == prompt.token_ids
    hole = prompt.token_ids.index(filler.fim.suffix)  # type: ignore[union-attr]
    assert list(prompt.token_ids[1:hole]) == filler._tokenizer.encode(before)[1 - hole :]
    assert prompt.before == prompt.token_ids[1:hole]
    kept = prompt.token_ids[hole + 1 : -1]
    assert list(kept) == filler._tokenizer.encode(after)[: len(kept)]
    assert prompt.truncated > 0


@pytest.mark.parametrize("suffix", ["\n    return y", None])
def test_a_stop_rule_reads_the_code_before_the_cursor_alone(filler: Service, suffix: str | None) -> None:
    prompt = filler.encode("def f(x):\n", suffix, truncate=False)
    assert filler._worker._cursor(prompt, "cpu").before == "def f(x):\n"  # type: ignore[union-attr]


def test_a_suffix_is_refused_or_ignored_and_said(service: Service, own: Callable[..., Service]) -> None:
    with pytest.raises(InvalidRequestError, match="fill-in-the-middle"):
        service.encode("a", "b", truncate=False)
    assert service.encode("a", "", truncate=False).suffix == "none"
    assert own(suffix="ignore").encode("a", "b", truncate=False).suffix == "ignored"


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
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(
    serve_config: Callable[..., ServeConfig], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(HarnessError, match=words) as error:
        Service(serve_config(**settings))
    assert "\n" not in str(error.value)


def test_settings_of_the_server_are_checked_by_name_and_range() -> None:
    with pytest.raises(ConfigError, match="max_queue"):
        ServeConfig.build({"max_queue": -1})
    with pytest.raises(ConfigError, match="Did you mean 'max_queue'"):
        ServeConfig.build({"max_que": 1})


def test_a_client_sees_a_folders_name_and_never_its_path(service: Service) -> None:
    assert "/" not in service.model_name


def test_a_ticket_outlives_its_loop(service: Service) -> None:
    """A loop that is closed while its request runs takes nothing down."""

    async def leave() -> None:
        service.submit(job(service, tokens=24))

    asyncio.run(leave())
    tokens, _ = asyncio.run(collect(service, job(service, tokens=3)))
    assert len(tokens) == 3


def test_failures_have_one_status_each() -> None:
    statuses = {error: error.status for error in ServingError.__subclasses__()}
    assert statuses[InvalidRequestError] == 422
    assert statuses[GenerationError] == 424
    assert statuses[OverloadedError] == 429
    assert statuses[LoadingError] == statuses[DrainingError] == 503
