"""A server on loopback, in a thread of its own, over a tiny random model."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from harness.contracts import ModelRequest
from harness.decoding.engine import Engine
from harness.decoding.generation import Token
from harness.decoding.loop import OpenBatch
from harness.decoding.unit_costs import Timing
from harness.models.model import resolve
from harness.records import Work
from harness.serving.app import make_app
from harness.serving.completions import Finished, GenerationError, Job, Prompt, Setting
from harness.serving.config import ServeConfig
from harness.serving.server import PatientProtocol
from harness.serving.service import Service
from harness.serving.worker import Answer
from strategies.fixed import Fixed

Piece = Token | Finished
DONE = Finished(
    text="xxx", rest="", ending="length", prompt=Prompt((1, 2, 3, 4, 5)), prompt_reused=2, kv="recompute",
    tokens=tuple(Token(index, 7, "x", -0.5, layer, False, 0.1) for index, layer in enumerate((12, 4, 4))),
    setting=Setting("fixed", {"layer": 4}, Fixed(4)), num_layers=12, queue_s=0.25, ttft_s=0.5, total_s=0.9,
    work=Work(exit_checks=2, lm_head_evaluations=2, layers_executed=11, exit_layers=(12, 4, 4)), energy_j=1.5,
    energy_source="rapl",
)  # fmt: skip
"""Three tokens on twelve layers: 12 + 4 + 4 executed, 16 skipped, 0.2 s per token after the first."""

PROMPTS = ("def load_path(items):\n", "for item in", "x = 1\ny = ", "return merge(total, 'size')\n    ")


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``; ``service`` is what is behind it."""

    url: str
    service: Service


@contextmanager
def ready(config: ServeConfig) -> Iterator[Service]:
    """A service whose model is there."""
    service = Service(config)
    service.start()
    limit = time.monotonic() + 120
    while service.state == "loading" and time.monotonic() < limit:
        time.sleep(0.02)
    assert service.state == "ready", service.failure
    try:
        yield service
    finally:
        service.drain()
        service.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An application at an address of this machine, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=PatientProtocol, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def serving(config: ServeConfig) -> Iterator[Running]:
    """A server until the block ends."""
    with ready(config) as service, listening(make_app(service)) as url:
        assert httpx.get(f"{url}/openapi.json").status_code == 200
        yield Running(url, service)


@pytest.fixture(scope="session")
def serve_config(tiny_llama: Path) -> Callable[..., ServeConfig]:
    """``serve_config(**settings)``: the tiny model, several strategies, one thread, and tokens as exits say them."""

    def make(**settings: object) -> ServeConfig:
        values = {
            "model": str(tiny_llama),
            "strategies": ("confidence:threshold=0.6", "fixed:layer=4", "random", "patience"),
            "threads": 1,
            "decode": "lossy",
            "energy": "estimate",
            "max_new_tokens": 48,
            "batch_size": 4,
        }
        return ServeConfig.build({**values, **settings})

    return make


@pytest.fixture(scope="session")
def server(serve_config: Callable[..., ServeConfig]) -> Iterator[Running]:
    """The default server, shared: no test changes it."""
    with serving(serve_config()) as running:
        yield running


@pytest.fixture
def start(serve_config: Callable[..., ServeConfig]) -> Iterator[Callable[..., Running]]:
    """``start(**settings)``: a server of one's own, until the test is done."""
    with ExitStack() as stack:

        def begin(**settings: object) -> Running:
            return stack.enter_context(serving(serve_config(**settings)))

        yield begin


@pytest.fixture
def own(serve_config: Callable[..., ServeConfig]) -> Iterator[Callable[..., Service]]:
    """``own(**settings)``: a service for one test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(ready(serve_config(**settings)))


# -------------------------------------------------------------------------------------------------- jobs of a service


def job(service: Service, text: str = PROMPTS[0], tokens: int = 8, **given: Any) -> Job:
    """A job of a text; what is no field of a job is its early exit."""
    facts = {key: given.pop(key) for key in ("stop", "keep_stop", "generate_s", "seed") if key in given}
    return service.job(text, max_new_tokens=tokens, early_exit=given or None, **facts)


async def collect(service: Service, wanted: Job) -> Finished:
    """The ending of a job, whose pieces add up."""
    *tokens, done = [piece async for _, piece in service.submit([wanted])]
    assert isinstance(done, Finished)
    assert tuple(tokens) == done.tokens
    assert "".join(token.text for token in done.tokens) + done.rest == done.text
    assert [token.index for token in done.tokens] == list(range(len(tokens)))
    return done


def run(service: Service, *jobs: Job) -> list[Any]:
    """Endings, or failures, of jobs that are submitted in this order, at once."""

    async def at_once() -> list[Any]:
        return await asyncio.gather(*(collect(service, one) for one in jobs), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(at_once(), 60))


@cache
def engine(request: ModelRequest, kv_input: Any) -> Engine:
    """Another engine over the same weights."""
    loaded = resolve(request).load("cpu")
    return Engine(loaded.backbone, loaded.info, kv_input, Timing())


def alone(service: Service, wanted: Job, **how: Any) -> Any:
    """The same request in a closed batch of its own, of another engine; a lossless one at full depth."""
    setting, config = wanted.setting, service.config
    full = service.settings.resolve({"strategy": "full", "decode": "lossy"}).strategy
    (made,) = engine(config.request(), config.kv_input).decode(
        [wanted.prompt.token_ids], how.pop("strategy", setting.strategy if setting.lossless is None else full),
        kv=config.kv, max_new_tokens=[wanted.max_new_tokens], seeds=[wanted.seed],
        eos_token_ids=resolve(config.request()).tokenizer.eos_token_ids, **how,
    )  # fmt: skip
    return made


def ids(done: Finished) -> list[int]:
    return [token.token_id for token in done.tokens]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[OpenBatch], None]], None]:
    """``step(before)``: every batch does something before each of its steps, until the test is done."""
    real = OpenBatch.step

    def first(before: Callable[[OpenBatch], None]) -> None:
        monkeypatch.setattr(OpenBatch, "step", lambda batch: (before(batch), real(batch))[1])

    return first


# ------------------------------------------------------------------------------------------- the pieces of an answer


@pytest.fixture
def jobs(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What was submitted during the test; the service still does it."""
    submitted: list[Job] = []
    submit = server.service.submit
    monkeypatch.setattr(server.service, "submit", lambda wanted: (submitted.extend(wanted), submit(wanted))[1])
    return submitted


class Changed:
    """An answer whose pieces are changed on their way."""

    def __init__(self, answer: Answer, change: Callable[[Piece], Piece]) -> None:
        self.answer, self.change = answer, change
        self.put, self.cancel = answer.put, answer.cancel

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        async for place, piece in self.answer:
            yield place, self.change(piece)


@pytest.fixture
def changed(server: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    """``changed(how)`` changes what the engine says, until the test is done."""
    submit = server.service.submit

    def change(how: Callable[[Any], Any]) -> None:
        monkeypatch.setattr(server.service, "submit", lambda wanted: Changed(submit(wanted), how))

    return change


@pytest.fixture
def refusing(server: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """``refusing(error)``: the service takes no job, until the test is done."""

    def refuse(error: Exception) -> None:
        def submit(wanted: Sequence[Job]) -> Answer:
            raise error

        monkeypatch.setattr(server.service, "submit", submit)

    return refuse


def fails_at(index: int) -> Callable[[Any], Any]:
    """A change that makes the engine fail at a token."""

    def change(piece: Any) -> Any:
        if isinstance(piece, Finished) or piece.index >= index:
            raise GenerationError("the engine failed.")
        return piece

    return change
