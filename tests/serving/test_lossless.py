"""Lossless requests get full depth's tokens, in bursts, whoever decodes beside them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from harness.config.decode import parse_decode
from harness.decoding.unit_costs import Timing
from harness.errors import OptionError, UnknownNameError
from harness.models.model import resolve
from harness.registry import DRAFTS
from harness.serving.completions import Finished, GenerationError, InvalidRequestError, Job
from harness.serving.config import ServeConfig
from harness.serving.exit_settings import Settings
from harness.serving.service import Service
from tests.serving.conftest import PROMPTS, alone, collect, ids, ready, run
from tests.serving.conftest import job as any_job

STRATEGIES = ("random:probability=0.7", "fixed:layer=4", "fixed:layer=10", "confidence:threshold=0.2", "patience")
LAYERS = 12


@pytest.fixture(scope="module")
def service(serve_config: Callable[..., ServeConfig]) -> Iterator[Service]:
    with ready(serve_config(strategies=STRATEGIES, decode="lossless", batch_size=6)) as service:
        yield service


def job(service: Service, text: str = PROMPTS[0], tokens: int = 24, **given: Any) -> Job:
    return any_job(service, text, tokens, **given)


MIXED: list[dict[str, Any]] = [
    {"strategy": "random"},
    {"strategy": "fixed", "layer": 6, "draft_max": 3},
    {"strategy": "random", "decode": "lossy"},
    {"strategy": "full", "draft": "lookup", "draft_max": 5},
    {"strategy": "fixed:layer=10", "decode": "lossless+lookup:n=2:min_n=1", "draft_max": 1},
    {"strategy": "confidence", "decode": "lossy"},
    {"strategy": "patience", "draft": "lookup:min_n=1"},
    {"strategy": "full"},
    {"strategy": "full", "decode": "lossy"},
]


def test_lossless_and_lossy_requests_decode_together(service: Service) -> None:
    drawn = random.Random(3)
    jobs = [
        job(service, drawn.choice(PROMPTS) * drawn.randrange(1, 4), drawn.randrange(1, 40), seed=number, **how)
        for number, how in enumerate(MIXED * 2)
    ]
    tokenizer = resolve(service.config.request()).tokenizer
    endings = run(service, *jobs)
    for wanted, done in zip(jobs, endings, strict=True):
        expected = alone(service, wanted)
        assert ids(done) == expected.token_ids
        assert done.text == tokenizer.decode([t for t in expected.token_ids if t != 0])
        assert done.ending == expected.finish_reason
        assert (not done.work.lossless) == (wanted.setting.lossless is None)
        assert all(token.logprob <= 1e-6 for token in done.tokens)
        assert 0 <= done.queue_s <= done.ttft_s <= done.total_s
        if not done.work.lossless:
            assert [token.exit_layer for token in done.tokens] == expected.exit_layers
            continue
        assert {token.exit_layer for token in done.tokens} == {LAYERS}
        assert done.work.drafted_at == tuple(token.drafted_at for token in done.tokens)
        assert done.work.accepted == tuple(token.accepted for token in done.tokens)
        kept = (len(done.tokens) - 1) * LAYERS
        assert done.work.layers_executed == kept + done.work.layers_discarded
    told = [done.work for done in endings if done.work.lossless]
    assert any(drafts.accepted_tokens for drafts in told)
    replaced = [
        at is not None and not kept
        for drafts in told
        for at, kept in zip(drafts.drafted_at, drafts.accepted, strict=True)
    ]
    assert any(replaced)
    assert any(0 in drafts.drafted_at for drafts in told)
    assert service.running == service.waiting == 0


@pytest.mark.parametrize("how", [MIXED[0], MIXED[4]], ids=str)
def test_a_stop_text_ends_it_where_full_depth_s_ends(service: Service, how: dict[str, Any]) -> None:
    free = run(service, job(service, tokens=30, strategy="full", decode="lossy"))[0]
    for place in (1, 9, 17):
        stop = free.text[place : place + 3]
        for keep in (False, True):
            ends = {"stop": (stop, "never"), "keep_stop": keep, "tokens": 30}
            expected = run(service, job(service, strategy="full", decode="lossy", **ends))[0]
            done = run(service, job(service, **how, **ends))[0]
            assert (done.text, done.ending, ids(done)) == (expected.text, "stop", ids(expected))
            assert [token.text for token in done.tokens] == [token.text for token in expected.tokens]


def test_one_who_goes_away_in_mid_draft_leaves_nothing_behind(own: Callable[..., Service], step: Any) -> None:
    service, steps = own(batch_size=1, decode="lossless", strategies=("fixed:layer=4",)), list[int]()
    expected = alone(service, job(service, PROMPTS[1], strategy="fixed"))

    def until_it_drafts(batch: Any) -> None:
        steps.append(1)
        if len(steps) == 4:  # three tokens are drafted, none of them verified
            tickets[0].cancel()

    async def scene() -> Finished:
        tickets.append(service.submit([job(service, tokens=40, draft_max=16)]))
        return await collect(service, job(service, PROMPTS[1]))

    tickets: list[Any] = []
    step(until_it_drafts)

    assert ids(asyncio.run(scene())) == expected.token_ids


def test_a_policy_under_which_nothing_waits_is_refused(
    serve_config: Callable[..., ServeConfig], own: Callable[..., Service]
) -> None:
    kv = "propagate"
    with pytest.raises(OptionError, match=f"under --kv {kv} none do. Use --kv recompute, or --decode lossy"):
        Service(serve_config(kv=kv, decode="lossless"))
    settings = own(kv=kv).settings
    assert (settings.decodes, settings.sources) == (("lossy",), ())
    with pytest.raises(InvalidRequestError, match=f"under --kv {kv} none do. Use --kv recompute") as error:
        settings.resolve({"decode": "lossless"})
    assert error.value.status == 400


def test_what_cannot_be_is_refused_in_one_line(service: Service) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"decode": "loseless"}, "cannot be read. Did you mean 'lossless'"),
        ({"draft": "lookup:n=99"}, "lookup:n=99 is not allowed"),
        ({"draft": "lookup", "decode": "lossy"}, r"needs to be verified. Write lossless\+lookup"),
        ({"draft": "lookup", "decode": "lossless+lookup:n=2"}, "Give one"),
        ({"draft_max": 3, "decode": "lossy"}, "this is lossy. Add decode = lossless"),
    ]
    for given, words in refusals:
        with pytest.raises(InvalidRequestError, match=words) as error:
            service.settings.resolve(given)
        assert str(error.value).startswith("early_exit: ")
        assert "\n" not in str(error.value)


def test_what_a_request_leaves_out_is_the_server_s(service: Service) -> None:
    settings = Settings(STRATEGIES, service.info, parse_decode("lossless+lookup:n=4"), 7)
    cases: list[tuple[dict[str, Any], str, int | None]] = [
        ({}, "lossless+lookup:n=4", 7),
        ({"strategy": "full"}, "lossless+lookup:n=4", 7),
        ({"draft_max": "3"}, "lossless+lookup:n=4", 3),
        ({"decode": "lossless"}, "lossless", 7),
        ({"decode": "lossless", "draft": "lookup"}, "lossless+lookup", 7),
        ({"draft": "lookup:k=2", "draft_max": 2}, "lossless+lookup:k=2", 2),
        ({"decode": "lossy"}, "lossy", None),
    ]
    for given, decode, most in cases:
        setting = settings.resolve(given)
        assert str(setting.decode) == decode
        assert (setting.lossless and setting.lossless.draft_max) == most


def test_a_cheap_head_may_read_drafts(own: Callable[..., Service]) -> None:
    service = own(decode="lossless", draft_head="int8", strategies=("random:probability=0.7",))
    wanted, lossy = job(service), job(service, decode="lossy")
    assert str(wanted.setting.lossless.head) == "int8"  # type: ignore[union-attr]
    done, beside = run(service, wanted, lossy)
    assert ids(done) == alone(service, wanted).token_ids
    assert ids(beside) == alone(service, lossy).token_ids
    assert done.work.lossless
    assert done.work.drafted_tokens > 0
    with pytest.raises(UnknownNameError, match=r"^unknown head 'int9'\. Did you mean 'int8'"):
        Settings(STRATEGIES, service.info, parse_decode("lossless"), draft_head="int9")


def test_a_draft_source_that_fails_takes_nobody_with_it(
    own: Callable[..., Service], plug_in: Callable[..., None]
) -> None:
    plug_in(
        "moody",
        """
        from harness.contracts import DraftRule, DraftSource

        @dataclass(frozen=True)
        class Outside(DraftRule, DraftSource):
            says: int = 0
            file: str = ""

            def start(self, model, batch):
                return self

            def propose(self, draft, max_tokens):
                if len(draft.token_ids) < 3:
                    return []
                if self.says:
                    return [self.says]
                raise ValueError("not today")
        """,
        DRAFTS,
    )
    service = own(decode="lossless", strategies=("random:probability=0.7",))
    jobs = [job(service), job(service, draft="moody"), job(service, draft="moody:says=999999"), job(service)]
    first, error, foreign, last = run(service, *jobs)
    assert ids(first) == ids(last) == alone(service, jobs[0]).token_ids
    assert isinstance(error, GenerationError)
    assert "not today" in str(error)
    assert isinstance(foreign, GenerationError)
    assert "proposed [999999]" in str(foreign)
    with pytest.raises(InvalidRequestError, match="a request cannot set 'file' of moody"):
        service.settings.resolve({"draft": "moody:file=/etc/passwd"})


def test_what_is_offered_is_described_and_what_was_drafted_is_counted(start: Callable[..., Any]) -> None:
    url = start(strategies=("random:probability=0.7",), decode="lossless+lookup", draft_max=6).url
    told = httpx.get(f"{url}/info").json()["early_exit"]
    assert {name: told["default"][name] for name in ("strategy", "decode", "draft_max", "stop_rule")} == {
        "strategy": "random", "decode": "lossless+lookup", "draft_max": 6, "stop_rule": "none",
    }  # fmt: skip
    assert told["decode"] == ["lossless", "lossy"]
    assert "lookup" in told["drafts"]
    drafts = httpx.post(f"{url}/completion", json={"prompt": "x = ", "n_predict": 20}).json()["x_early_exit"]["drafts"]
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    for name in ("drafted_tokens", "accepted_tokens", "verifications", "layers_discarded"):
        assert f'early_exit_{name}_total{{strategy="random"}} {float(drafts[name])}' in lines


def test_draft_rules_have_all_that_a_run_gives_them(
    own: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities, and a sight of verifications: what is drafted is what a closed batch drafts."""
    monkeypatch.setattr(Timing, "known", lambda *_: None)  # two engines would measure two prices of a draft
    service = own(decode="lossless", strategies=("random:probability=0.7", "layerskip:layer=4:length=3", "del"))
    for how in (
        {"strategy": "random", "decode": "lossless+lookup:min_n=1+expected"},
        {"strategy": "layerskip"},
        {"strategy": "del"},
    ):
        wanted = job(service, **how)
        done = run(service, wanted)[0]
        made = alone(service, wanted, strategy=wanted.setting.strategy, lossless=wanted.setting.lossless)
        assert ids(done) == made.token_ids == alone(service, wanted).token_ids
        assert done.work.lossless
        assert (done.work.drafted_tokens, done.work.verifications) == (made.drafts, made.verifications)
        assert how["strategy"] == "del" or made.drafts
