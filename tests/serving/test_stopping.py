"""A request whose strategy ends its completion: it is told why, in every dialect, and nobody beside it notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, get_args

import pytest

from harness.serving.http.routes import llama_cpp, ollama, openai, tgi
from harness.serving.jobs import Ending, Finished, Job
from harness.serving.service import Service

PROMPT = "def add(a, b):\n    return "
ENDS_AT_FOUR_TOKENS = """
@dataclass(frozen=True)
class Outside(Strategy):
    def should_exit(self, view):
        view.stop(torch.tensor([len(made) >= 4 for made in view.token_ids]))
        return torch.zeros(len(view.rows), dtype=torch.bool)
"""


def job(service: Service, strategy: str, decode: str) -> Job:
    prompt = service.encode(PROMPT, None, truncate=False)
    return Job(prompt, service.settings.resolve({"strategy": strategy, "decode": decode}), 9)


async def collect(service: Service, wanted: Job) -> Finished:
    *tokens, done = [piece async for piece in service.submit(wanted)]
    assert isinstance(done, Finished)
    assert tuple(tokens) == done.tokens
    assert "".join(token.text for token in done.tokens) + done.rest == done.text
    return done


def test_a_strategy_ends_its_own_request(own: Callable[..., Service], plug_in: Callable[..., None]) -> None:
    plug_in("ender", ENDS_AT_FOUR_TOKENS)
    service = own(strategies=("ender", "full"))
    wanted = [job(service, *how) for how in (("full", "lossy"), ("ender", "lossy"), ("ender", "lossless"))]

    async def scene() -> list[Any]:
        return await asyncio.gather(*(collect(service, one) for one in wanted))

    whole, ended, lossless = asyncio.run(scene())
    assert ended.ending == "strategy"
    assert [token.token_id for token in ended.tokens] == [token.token_id for token in whole.tokens][:4]
    assert len(whole.tokens) > 4
    assert (lossless.text, lossless.ending) == (whole.text, whole.ending)
    assert asyncio.run(collect(service, wanted[1])).text == ended.text  # its row was freed


def test_a_stream_tells_each_token_once_where_a_strategy_ends_it(
    own: Callable[..., Service], plug_in: Callable[..., None]
) -> None:
    """The last one is sent before it is known to be that; the ending comes with its index and without its text."""
    plug_in("ender", ENDS_AT_FOUR_TOKENS)
    service = own(strategies=("ender", "full"))

    async def streamed(wanted: Job) -> list[dict[str, Any]]:
        lines = tgi._events("", None)
        sent = [line async for piece in service.submit(wanted) for line in lines(piece)]
        return [json.loads(line.removeprefix(b"data:")) for line in sent]

    for strategy, again in (("ender", True), ("full", False)):
        events = asyncio.run(streamed(job(service, strategy, "lossy")))
        *_, last = events
        assert "".join(event["token"]["text"] for event in events) == last["generated_text"]
        assert len({event["index"] for event in events}) == last["details"]["generated_tokens"]
        assert (len(events) > last["details"]["generated_tokens"]) == again


@pytest.mark.parametrize(
    "words", [tgi.FINISH_REASONS, openai.FINISH_REASONS, ollama.DONE_REASONS, llama_cpp.STOP_TYPES]
)
def test_every_dialect_has_a_word_for_every_ending(words: dict[str, str]) -> None:
    assert set(words) == set(get_args(Ending))
