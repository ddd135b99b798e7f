"""Counters in Prometheus' format.

Two families, never mixed: HTTP requests, counted once each with the status they got, refused ones included; and
completions, the jobs behind them, counted by how they ended. A request with two prompts is one request and two
completions; a stream that fails half-way is a request with status 200 and a completion that failed.

Labels are bounded: routes, statuses, loaded strategies and layers, never a text of a client.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from harness.appearance.visible_text import one_line
from harness.serving.jobs import Finished

if TYPE_CHECKING:
    from typing import Protocol

    class Load(Protocol):
        """State that the gauges report."""

        @property
        def waiting(self) -> int:
            """Requests in the queue."""

        @property
        def running(self) -> int:
            """Requests in the batch."""


KINDS = ("cancelled", "draining", "generation", "internal", "loading", "overloaded", "validation")
"""How a completion fails; any other word is counted as ``internal``."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_WORK = (
    (
        "layers_executed",
        "early_exit_decode_layers",
        "Decoder layers run after prefill, catch-up work of the KV policy included.",
    ),
    ("exit_checks", "early_exit_exit_checks", "Times the strategy was asked whether to exit."),
    (
        "lm_head_evaluations",
        "early_exit_lm_head_evaluations",
        "LM-head evaluations after prefill, the outputs' own included.",
    ),
)
"""Counters of a completion's :class:`harness.records.Work`: its name there, the series, and what that says."""
_DRAFTS = (
    ("drafts", "early_exit_drafted_tokens", "Tokens that lossless decoding drafted, discarded ones included."),
    ("accepted_tokens", "early_exit_accepted_tokens", "Of these, those that full depth agreed with."),
    (
        "verifications",
        "early_exit_verifications",
        "Passes of lossless decoding through all layers after prefill, one per completion and pass.",
    ),
    (
        "layers_discarded",
        "early_exit_layers_discarded",
        "Decoder layers run for drafted tokens that were discarded.",
    ),
)
"""The same of lossless decoding alone."""


class Exposition(NamedTuple):
    """A page of metrics.

    Attributes:
        content: the page.
        media_type: Prometheus' text format, or OpenMetrics where it was asked for.
    """

    content: bytes
    media_type: str


class Metrics:
    """The counters of one server, in a registry of their own. Every method may be called from any thread.

    Args:
        energy_measured: joules come from a sensor; others are not counted.
    """

    def __init__(self, *, energy_measured: bool = False) -> None:
        self._energy_measured = energy_measured
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        gauge = partial(Gauge, registry=registry)
        self._http = counter(
            "early_exit_http_requests",
            "HTTP requests by route and status; 499: the client went away before its answer was complete.",
            ("method", "route", "status"),
        )
        self._http_s = histogram(
            "early_exit_http_request_duration_seconds",
            "Seconds from the request's head to the end of its answer, streaming included.",
            ("method", "route"),
            buckets=REQUEST_S,
        )
        self._completions = counter(
            "early_exit_completions", "Completions by outcome: success, or why there is none.", ("outcome",)
        )
        for outcome in ("success", *KINDS):
            self._completions.labels(outcome)
        self._queue_s = histogram(
            "early_exit_queue_wait_seconds",
            "Seconds from a job's submission to the start of its prefill.",
            buckets=WAIT_S,
        )
        self._ttft_s = histogram(
            "early_exit_time_to_first_token_seconds",
            "Seconds from a job's submission to its first token, waiting included.",
            buckets=WAIT_S,
        )
        self._tpot_s = histogram(
            "early_exit_time_per_output_token_seconds",
            "Mean seconds per token after a completion's first; completions of one token have none.",
            buckets=TOKEN_S,
        )
        self._waiting = gauge("early_exit_queue_size", "Requests that wait for a free row.")
        self._running = gauge("early_exit_running_requests", "Requests that are being decoded.")
        self._prompt = counter("early_exit_prompt_tokens", "Prompt tokens of finished completions.")
        self._reused = counter(
            "early_exit_prompt_tokens_reused",
            "Of these, those not read again: an earlier prompt of the same API key began with them.",
        )
        self._computed = counter("early_exit_prompt_tokens_computed", "Of these, those that were read.")
        by_strategy = ("strategy",)
        self._generated = counter("early_exit_generated_tokens", "Tokens of finished completions.", by_strategy)
        self._exits = counter(
            "early_exit_tokens_by_exit_layer",
            "Generated tokens by the number of decoder layers executed for them.",
            ("strategy", "exit_layer"),
        )
        self._executed = counter(
            "early_exit_layers_executed",
            "Decoder layers executed for generated tokens, first token of prefill included.",
            by_strategy,
        )
        self._skipped = counter(
            "early_exit_layers_skipped",
            "Decoder layers that generated tokens skipped; with executed: tokens x layers of the model.",
            by_strategy,
        )
        self._work = {name: counter(series, said, by_strategy) for name, series, said in (*_WORK, *_DRAFTS)}
        self._energy: Counter | None = None
        self._lock = Lock()

    def bind(self, load: Load) -> None:
        """Make the gauges read the service at each scrape; binding again changes nothing."""
        self._waiting.set_function(lambda: load.waiting)
        self._running.set_function(lambda: load.running)

    def finished(self, done: Finished) -> None:
        """Count a completion. Called from the engine's thread."""
        strategy = one_line(done.setting.name)
        self._completions.labels("success").inc()
        self._queue_s.observe(done.queue_s)
        self._ttft_s.observe(done.ttft_s)
        if len(done.tokens) > 1:
            self._tpot_s.observe((done.tokens[-1].time_s - done.tokens[0].time_s) / (len(done.tokens) - 1))
        self._prompt.inc(len(done.prompt.token_ids))
        self._reused.inc(done.prompt_reused)
        self._computed.inc(len(done.prompt.token_ids) - done.prompt_reused)
        self._generated.labels(strategy).inc(len(done.tokens))
        layers = done.work.exits
        for layer, tokens in layers.items():
            self._exits.labels(strategy, str(layer)).inc(tokens)
        executed = sum(layer * tokens for layer, tokens in layers.items())
        self._executed.labels(strategy).inc(executed)
        self._skipped.labels(strategy).inc(len(done.tokens) * done.num_layers - executed)
        for name, *_ in (*_WORK, *(_DRAFTS if done.work.lossless else ())):
            self._work[name].labels(strategy).inc(getattr(done.work, name))
        if done.energy_j is not None and self._energy_measured:
            self._joules().labels(one_line(done.energy_source)).inc(done.energy_j)

    def failed(self, kind: str) -> None:
        """Count a job that failed or was refused: an error's ``kind``, or ``cancelled``."""
        self._completions.labels(kind if kind in KINDS else "internal").inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request.

        Args:
            method: as received; one that HTTP does not know becomes ``other``.
            route: template of the route that took it, ``other`` where none did: never a client's path.
            status: of the answer; 499 where the client went away before it was complete.
            seconds: from the request's head to the end of the answer.
        """
        method = method if method in METHODS else "other"
        self._http.labels(method, route, str(status)).inc()
        self._http_s.labels(method, route).observe(seconds)

    def page(self, accept: str = "") -> Exposition:
        """Return all series in the format that an ``Accept`` header asks for."""
        try:
            encode, media_type = choose_encoder(accept)
        except Exception:  # it fails on versions that are not numbers
            encode, media_type = choose_encoder("")
        return Exposition(encode(_Lean(self.registry)), media_type)

    def _joules(self) -> Counter:
        """Return the energy counter, created with the first reading of a sensor."""
        with self._lock:
            if self._energy is None:
                self._energy = Counter(
                    "early_exit_energy_joules",
                    "Joules a sensor measured while completions ran, each one's share.",
                    ("source",),
                    registry=self.registry,
                )
            return self._energy


class _Lean(Collector):
    """All series but the times at which counters began, which would double the number of series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
