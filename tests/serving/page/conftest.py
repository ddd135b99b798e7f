"""A server with a script in place of its engine, and a browser at its page."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI

from harness.config.decode import build_decode, parse_decode
from harness.decoding.generation import Token
from harness.records import Work
from harness.serving.app import make_app
from harness.serving.completions import Finished, GenerationError, Job, Prompt, ServingError, Setting
from harness.serving.exit_settings import Loaded
from harness.serving.service import Service
from tests.serving.conftest import listening

EVIL = "<script>window.pwned=1</script>\"'><img src=x onerror='window.pwned=2'>{{ 7*7 }}"
PIECES = (("    return", 30), (" [", 4), ("line", 14), (".", 4), ("rstrip", 18), ("()", 14), ("\n", 30), ("\tfor", 8))
"""Texts and exit layers of what the scripted model says."""

DRAFTS = ((None, False), (4, True), (14, True), (18, False), (0, True), (0, False), (None, False), (8, True))
"""Where each of its tokens was drafted, and whether that was accepted, when it decodes losslessly."""


class Script:
    """An answer that says what it was told to."""

    def __init__(self, job: Job, service: Scripted) -> None:
        self.job, self.service, self.cancelled = job, service, threading.Event()

    def put(self, error: Exception) -> None: ...

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token | Finished]]:
        start, made = time.perf_counter(), list[Token]()
        full = self.job.setting.name == "full"
        lossless = self.job.setting.lossless is not None
        for index in range(self.job.max_new_tokens):
            await asyncio.sleep(self.service.token_s)
            if index == self.service.fails_at:
                raise GenerationError("the engine ran out of <memory>.")
            text, layer = self.service.pieces[index % len(self.service.pieces)]
            ahead = index if full or index < self.service.differs_at else index + 1000
            layer = 30 if full or index == 0 else layer
            last = index == self.job.max_new_tokens - 1
            told: dict[str, Any] = {"exit_layer": layer}
            if lossless:
                drafted, kept = self.service.drafts[index % len(self.service.drafts)]
                told = {"exit_layer": 30, "drafted_at": drafted, "accepted": kept}
            made.append(
                Token(index, ahead, text, -0.1, special=False, time_s=time.perf_counter() - start, last=last, **told)
            )
            yield 0, made[-1]
        joules, source = self.service.energy
        work = Work(
            exit_checks=3, lm_head_evaluations=len(made) + 2, layers_executed=sum(t.exit_layer for t in made[1:]),
            exit_layers=tuple(t.exit_layer for t in made),
        )  # fmt: skip
        if lossless:
            facts = tuple(t.drafted_at for t in made), tuple(bool(t.accepted) for t in made)
            work = replace(work, drafted_at=facts[0], accepted=facts[1], drafts=5, verifications=4, layers_discarded=78)
        yield 0, Finished(
            text="".join(token.text for token in made), rest="", ending="length", tokens=tuple(made),
            prompt=self.job.prompt, prompt_reused=self.service.prompt_reused, setting=self.job.setting,
            kv=self.service.config.kv, num_layers=30, work=work, queue_s=self.service.queue_s, ttft_s=made[0].time_s,
            total_s=made[-1].time_s, energy_j=joules, energy_source=source,
        )  # fmt: skip

    def cancel(self) -> None:
        self.cancelled.set()


class ThreeStrategies:
    """Settings that are known, whatever ships."""

    loaded = (
        Loaded("confidence", {"threshold": 0.9}, {"threshold": (0.0, 1.0)}, {"threshold": "probability"}, {}, True),
        Loaded("fixed", {"layer": 14}, {"layer": (1.0, 30.0)}, {"layer": "where to exit"}, {}, False),
        Loaded("full", {}, {}, {}, {}, False),
    )

    decodes, sources, draft_max = ("lossless", "lossy"), ("lookup",), 16
    stop = "none"

    def __init__(self) -> None:
        self.default = self.resolve({"threshold": 0.9, "decode": "lossy"})

    def resolve(self, given: Mapping[str, Any] | None) -> Setting:
        options = {"strategy": "confidence", **(given or {})}
        decode = str(options.pop("decode", "lossy"))
        source, most = options.pop("draft", None), int(options.pop("draft_max", 16))
        spec = parse_decode(f"{decode}+{source}" if source else decode)
        name = str(options.pop("strategy"))
        return Setting(name, options, None, spec, build_decode(spec, most))  # type: ignore[arg-type]


class Scripted:
    """The facts of another service, known strategies, and a script in place of its engine."""

    waiting, running = 0, 0

    def __init__(self, other: Service) -> None:
        self.config = other.config.model_copy(update={"max_new_tokens": 256})
        self.metrics, self.fim, self.max_prompt_tokens = other.metrics, other.fim, other.max_prompt_tokens
        self.info = replace(other.info, num_layers=30, exit_points=(4, 6, 8, 10, 12, 14, 18, 22, 26), weights="tuned")
        self.settings, self.device = ThreeStrategies(), "cpu"
        self.model_name, self.state, self.failure = "a-model", "ready", None
        self.energy_description, self.energy_measured = "CPU time × 4 W per core", False
        self.pieces: Sequence[tuple[str, int]] = PIECES
        self.drafts: Sequence[tuple[int | None, bool]] = DRAFTS
        self.token_s, self.differs_at, self.fails_at = 0.002, 10_000, -1
        self.prompt_reused, self.queue_s = 0, 0.0
        self.energy: tuple[float | None, str] = (1.5, "estimate")
        self.refuses: ServingError | None = None
        self.scripts: list[Script] = []

    def encode(self, prompt: str | Sequence[int], suffix: str | None, *, truncate: bool) -> Prompt:
        return Prompt(tuple(range(len(prompt))))

    job, check_model = Service.job, Service.check_model

    def submit(self, jobs: Sequence[Job]) -> Script:
        if self.refuses is not None:
            raise self.refuses
        self.scripts.append(Script(jobs[0], self))
        return self.scripts[-1]


@pytest.fixture(scope="session")
def scripted_server(server: Any) -> Iterator[tuple[str, FastAPI]]:
    app = make_app(server.service)
    with listening(app) as url:
        yield url, app


@pytest.fixture
def service(server: Any, scripted_server: tuple[str, FastAPI]) -> Scripted:
    """What is behind the page in this test."""
    app = scripted_server[1]
    app.state.service = Scripted(server.service)
    return app.state.service


class Visitor:
    """A browser at the page, that remembers what was sent and everything it must not do."""

    def __init__(self, context: Any, url: str) -> None:
        self.url, self.faults, self.sent = url, list[str](), list[dict[str, Any]]()
        self.page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.route("**/*", self._only_here)
        self.page.on("console", lambda message: self.faults.append(f"console {message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))

    def open(self) -> Any:
        self.page.goto(self.url + "/")
        self.page.wait_for_selector("#sent:not(:empty)")
        return self.page

    def run(self, *, tokens: int | None = None) -> Any:
        """Press Run and wait for the end."""
        if tokens is not None:
            self.page.fill("#tokens", str(tokens))
        self.page.click("#run")
        return self.done()

    def done(self) -> Any:
        self.page.wait_for_selector("#stop[disabled]")
        return self.page

    def refused(self) -> str:
        """Run, and return what the page says of the failure; the browser's own line about the status is no fault."""
        self.run(tokens=12)
        self.faults[:] = [fault for fault in self.faults if "Failed to load resource" not in fault]
        assert self.page.is_enabled("#run")
        assert self.page.get_attribute("#error-early", "role") == "alert"
        return str(self.page.inner_text("#error-early"))

    @staticmethod
    def hexadecimal(colour: str) -> str:
        """Return a computed colour as style sheets write it."""
        return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])

    def figure(self, name: str, run: str = "early") -> str:
        return " ".join(self.page.inner_text(f'td[data-run="{run}"][data-figure="{name}"]').split())

    def _only_here(self, route: Any) -> None:
        request = route.request
        if not request.url.startswith(f"{self.url}/"):
            self.faults.append(f"request: {request.url}")
            route.abort()
            return
        if request.method == "POST":
            self.sent.append({"headers": request.all_headers(), **request.post_data_json})
        route.continue_()


@pytest.fixture(scope="module")
def desk(chromium: Any) -> Any:
    """What most visitors sit at; making one takes longer than a page."""
    return chromium.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def visit(
    desk: Any, chromium: Any, service: Scripted, scripted_server: tuple[str, FastAPI]
) -> Iterator[Callable[..., Visitor]]:
    """``visit(**context options)`` opens the page; every test also checks that nothing forbidden happened."""
    visitors: list[Visitor] = []

    def open_page(*, url: str | None = None, **options: Any) -> Visitor:
        context = chromium.new_context(**options) if options else desk
        visitors.append(Visitor(context, url or scripted_server[0]))
        visitors[-1].open()
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.page.close()
    assert [fault for visitor in visitors for fault in visitor.faults] == []


@pytest.fixture
def evil() -> str:
    """A text that tries to be markup."""
    return EVIL
