"""A request whose logits are not finite is answered with that, and the others with their completions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import torch

from harness.serving.config import ServeConfig
from harness.serving.failures import GenerationError
from harness.serving.jobs import Finished, Job
from harness.serving.service import Service
from tests.serving.conftest import Running, ready

SOUND, LOST = "def load_path(items):\n", "return merge(total, 'size')\n"


def poison(service: Service, bad: int) -> None:
    """Make the embedding of one token NaN, as weights in memory become that overflow for some prompts."""
    batch: Any = service._worker._batch  # type: ignore[union-attr]
    embed = batch._backbone.embed

    def lost(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        states = embed(token_ids, positions).clone()
        states[token_ids == bad] = math.nan
        return states

    batch._backbone = replace(batch._backbone, embed=lost)


def a_token_of(service: Service, text: str, *, not_of: str) -> int:
    return next(token for token in service._tokenizer.encode(text) if token not in service._tokenizer.encode(not_of))


def test_one_request_fails_and_the_one_beside_it_does_not(serve_config: Callable[..., ServeConfig]) -> None:
    def job(text: str) -> Job:
        return Job(service.encode(text, None, truncate=False), service.settings.resolve({"strategy": "full"}), 6)

    async def outcome(text: str) -> Any:
        try:
            return [piece async for piece in service.submit(job(text))][-1]
        except GenerationError as error:
            return error

    async def both() -> list[Any]:
        return await asyncio.gather(outcome(LOST), outcome(SOUND))

    with ready(serve_config()) as service:
        alone = asyncio.run(outcome(SOUND))
        made = [token.token_id for token in alone.tokens]
        bad = next(
            token
            for token in service._tokenizer.encode(LOST)
            if token not in {*service._tokenizer.encode(SOUND), *made}
        )
        poison(service, bad)
        error, done = asyncio.run(both())
        assert isinstance(error, GenerationError)
        assert str(error).startswith("generation failed: logits of layer 12 are not finite at token 1: ")
        assert isinstance(done, Finished)
        assert [token.token_id for token in done.tokens] == made
        assert [token.token_id for token in asyncio.run(outcome(SOUND)).tokens] == made
        assert service.running == 0


def test_over_http_it_is_a_failure_of_generation_in_one_line(start: Callable[..., Running]) -> None:
    running = start()
    poison(running.service, a_token_of(running.service, LOST, not_of=SOUND))
    answer = httpx.post(f"{running.url}/generate", json={"inputs": LOST}, timeout=60)
    assert answer.status_code == 424
    assert "are not finite at token 1" in answer.json()["error"]
    assert (
        httpx.post(f"{running.url}/generate", json={"inputs": SOUND, "parameters": {"max_new_tokens": 1}}).status_code
        == 200
    )
