"""Counters in Prometheus' format.

Two families, never mixed: HTTP requests, counted once each with the status they got, refused ones included; and
completions, the jobs behind them, counted by how they ended. A request with two prompts is one request and two
completions. Labels are bounded: routes, statuses, loaded strategies and layers, never a text of a client.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from harness.appearance.visible_text import one_line
from harness.serving.completions import Finished

KINDS = ("cancelled", "draining", "generation", "internal", "loading", "overloaded", "validation")
"""How a completion fails; any other word is counted as ``internal``."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Series(NamedTuple):
    """A counter of completions, or with buckets (seconds) a histogram; ``early_exit_`` stands before its name."""

    name: str
    of: str
    """Attribute of :class:`Finished`, or of one of that, which is added or observed, unless it is ``None``; a mapping
    by its keys, the last label."""
    help: str
    labels: tuple[str, ...] = ("strategy",)
    buckets: tuple[float, ...] = ()


SERIES = (
    Series("queue_wait_seconds", "queue_s",
           "Seconds from a job's submission to the start of its prefill.", (), WAIT_S),
    Series("time_to_first_token_seconds", "ttft_s",
           "Seconds from a job's submission to its first token, waiting included.", (), WAIT_S),
    Series("time_per_output_token_seconds", "tpot_s",
           "Mean seconds per token after a completion's first; completions of one token have none.", (), TOKEN_S),
    Series("prompt_tokens", "prompt_tokens", "Prompt tokens of finished completions.", ()),
    Series("prompt_tokens_reused", "prompt_reused",
           "Of these, those not read again: an earlier prompt of the same API key began with them.", ()),
    Series("prompt_tokens_computed", "prompt_computed", "Of these, those that were read.", ()),
    Series("generated_tokens", "new_tokens", "Tokens of finished completions."),
    Series("tokens_by_exit_layer", "work.exits",
           "Generated tokens by the number of decoder layers executed for them.", ("strategy", "exit_layer")),
    Series("layers_executed", "layers_executed",
           "Decoder layers executed for generated tokens, first token of prefill included."),
    Series("layers_skipped", "layers_skipped",
           "Decoder layers that generated tokens skipped; with executed: tokens x layers of the model."),
    Series("decode_layers", "work.layers_executed",
           "Decoder layers run after prefill, catch-up work of the KV policy included."),
    Series("exit_checks", "work.exit_checks", "Times the strategy was asked whether to exit."),
    Series("lm_head_evaluations", "work.lm_head_evaluations",
           "LM-head evaluations after prefill, the outputs' own included."),
    Series("drafted_tokens", "drafts.drafted_tokens",
           "Tokens that lossless decoding drafted, discarded ones included."),
    Series("accepted_tokens", "drafts.accepted_tokens", "Of these, those that full depth agreed with."),
    Series("verifications", "drafts.verifications",
           "Passes of lossless decoding through all layers after prefill, one per completion and pass."),
    Series("layers_discarded", "drafts.layers_discarded",
           "Decoder layers run for drafted tokens that were discarded."),
)  # fmt: skip
ENERGY = Series(
    "energy_joules", "energy_j", "Joules a sensor measured while completions ran, each one's share.", ("source",)
)
"""Of servers whose meter reads a sensor: other joules are not counted."""


class Metrics:
    """The counters of one server, in a registry of their own. Every method may be called from any thread."""

    def __init__(self, *, energy_measured: bool = False) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it would double every series
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._http = Counter(
            "early_exit_http_requests",
            "HTTP requests by route and status; 499: the client went away before its answer was complete.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._http_s = Histogram(
            "early_exit_http_request_duration_seconds",
            "Seconds from the request's head to the end of its answer, streaming included.",
            ("method", "route"),
            buckets=REQUEST_S,
            registry=registry,
        )
        self._completions = Counter(
            "early_exit_completions",
            "Completions by outcome: success, or why there is none.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("success", *KINDS):
            self._completions.labels(outcome)
        self._prefetched = Counter(
            "early_exit_prefetched_tokens",
            "Tokens computed while no request waited or ran: of prompts made exact (deepened), and decoded behind "
            "answers (drafted), of which completions accepted those that are used.",
            ("work",),
            registry=registry,
        )
        self._prefetched_s = Counter("early_exit_prefetch_seconds", "Seconds spent on them.", registry=registry)
        self._waiting = Gauge("early_exit_queue_size", "Requests that wait for a free row.", registry=registry)
        self._running = Gauge("early_exit_running_requests", "Requests that are being decoded.", registry=registry)
        self._series = [
            (one, Histogram(name, one.help, one.labels, buckets=one.buckets, registry=registry))
            if one.buckets
            else (one, Counter(name, one.help, one.labels, registry=registry))
            for one in ((*SERIES, ENERGY) if energy_measured else SERIES)
            for name in [f"early_exit_{one.name}"]
        ]

    def bind(self, load: Any) -> None:
        """Make the gauges read ``waiting`` and ``running`` of a service at each scrape."""
        self._waiting.set_function(lambda: load.waiting)
        self._running.set_function(lambda: load.running)

    def finished(self, done: Finished) -> None:
        """Count a completion. Called from the engine's thread."""
        self._completions.labels("success").inc()
        known = {"strategy": one_line(done.setting.name), "source": one_line(done.energy_source)}
        for series, metric in self._series:
            found: Any = done
            for name in series.of.split("."):
                found = getattr(found, name, None)
            labels = [known[label] for label in series.labels if label in known]
            amounts = found if isinstance(found, dict) else {None: found}
            for key, amount in amounts.items():
                if amount is None:
                    continue
                values = labels if key is None else [*labels, str(key)]
                child = metric.labels(*values) if values else metric
                child.observe(amount) if isinstance(child, Histogram) else child.inc(amount)

    def prefetched(self, deepened: int, drafted: int, seconds: float) -> None:
        """Count a piece of work between requests: tokens of prompts made exact, tokens drafted, and its time."""
        self._prefetched.labels("deepened").inc(deepened)
        self._prefetched.labels("drafted").inc(drafted)
        self._prefetched_s.inc(seconds)

    def prefetch_used(self, tokens: int) -> None:
        """Count accepted tokens of a completion that had been drafted between requests."""
        self._prefetched.labels("used").inc(tokens)

    def failed(self, kind: str) -> None:
        """Count a job that failed or was refused: an error's ``kind``, or ``cancelled``."""
        self._completions.labels(kind if kind in KINDS else "internal").inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request by the template of its route, ``other`` where none took it: never a client's path."""
        method = method if method in METHODS else "other"
        self._http.labels(method, route, str(status)).inc()
        self._http_s.labels(method, route).observe(seconds)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return all series in the format that an ``Accept`` header asks for, and its media type."""
        try:
            encode, media_type = choose_encoder(accept)
        except Exception:  # it fails on versions that are not numbers
            encode, media_type = choose_encoder("")
        return encode(self.registry), media_type
