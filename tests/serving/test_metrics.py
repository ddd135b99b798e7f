"""Every counter says what happened, in a bounded number of series, and holds no joule that nobody measured."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from harness.appearance.visible_text import is_hidden
from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.decoding.generation import Token
from harness.records import Work
from harness.serving.jobs import Finished, Prompt, Setting
from harness.serving.metrics import KINDS, Metrics

FIXED = build_strategy(StrategySpec("fixed", (("layer", "4"),)))


def token(index: int, layer: int, time_s: float) -> Token:
    return Token(index, 7, "x", -0.5, layer, False, time_s)


DONE = Finished(
    text="xxx",
    rest="",
    ending="length",
    tokens=(token(0, 12, 0.5), token(1, 4, 0.7), token(2, 4, 0.9)),
    prompt=Prompt((1, 2, 3, 4, 5)),
    prompt_reused=2,
    setting=Setting("fixed", {"layer": 4}, FIXED),
    kv="recompute",
    num_layers=12,
    work=Work(exit_checks=2, lm_head_evaluations=2, layers_executed=11, exit_layers=(12, 4, 4)),
    queue_s=0.25,
    ttft_s=0.5,
    total_s=0.9,
    energy_j=1.5,
    energy_source="rapl",
)
"""Three tokens on twelve layers: 12 + 4 + 4 executed, 16 skipped, 0.2 s per token after the first."""


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.page().content.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return series(metrics)[f"early_exit_{name}", tuple(sorted(labels.items()))]


def test_a_label_hides_nothing() -> None:
    metrics = Metrics(energy_measured=True)
    setting = Setting("fi\x1b[2J\u202e\nxed", {}, FIXED)
    metrics.finished(replace(DONE, setting=setting, energy_source="ra\x9bpl"))
    assert value(metrics, "generated_tokens_total", strategy=r"fi\x1b[2J\u202e xed") == 3
    assert value(metrics, "energy_joules_total", source=r"ra\x9bpl") == 1.5
    text = metrics.page().content.decode()
    assert not [character for character in text if is_hidden(character) and character != "\n"]


def test_a_completion_is_counted_once_in_each_series() -> None:
    metrics = Metrics()
    metrics.finished(DONE)
    metrics.finished(replace(DONE, tokens=DONE.tokens[:1], work=Work(exit_layers=(12,))))
    assert value(metrics, "completions_total", outcome="success") == 2
    assert value(metrics, "prompt_tokens_total") == 10
    assert value(metrics, "prompt_tokens_reused_total") == 4
    assert value(metrics, "prompt_tokens_computed_total") == 6
    assert value(metrics, "generated_tokens_total", strategy="fixed") == 4
    assert value(metrics, "tokens_by_exit_layer_total", strategy="fixed", exit_layer="12") == 2
    assert value(metrics, "tokens_by_exit_layer_total", strategy="fixed", exit_layer="4") == 2
    assert value(metrics, "layers_executed_total", strategy="fixed") == 32
    assert value(metrics, "layers_skipped_total", strategy="fixed") == 16
    assert value(metrics, "decode_layers_total", strategy="fixed") == 11
    assert value(metrics, "exit_checks_total", strategy="fixed") == 2
    assert value(metrics, "lm_head_evaluations_total", strategy="fixed") == 2
    assert value(metrics, "queue_wait_seconds_sum") == 0.5
    assert value(metrics, "queue_wait_seconds_bucket", le="0.1") == 0
    assert value(metrics, "queue_wait_seconds_bucket", le="0.25") == 2
    assert value(metrics, "time_to_first_token_seconds_sum") == 1.0
    # one token has no time between tokens: not zero, not there
    assert value(metrics, "time_per_output_token_seconds_count") == 1
    assert value(metrics, "time_per_output_token_seconds_sum") == pytest.approx(0.2)


def test_layers_of_all_tokens_are_executed_or_skipped() -> None:
    metrics = Metrics()
    for count in (1, 2, 3):
        metrics.finished(replace(DONE, tokens=DONE.tokens[:count], work=Work(exit_layers=(12, 4, 4)[:count])))
    tokens = value(metrics, "generated_tokens_total", strategy="fixed")
    layers = value(metrics, "layers_executed_total", strategy="fixed") + value(
        metrics, "layers_skipped_total", strategy="fixed"
    )
    assert (tokens, layers) == (6, 72)


@pytest.mark.parametrize("source", ["nvml", "a-wall-plug"])
def test_measured_joules_are_exported_with_their_sensor(source: str) -> None:
    metrics = Metrics(energy_measured=True)
    metrics.finished(replace(DONE, energy_source=source))
    metrics.finished(replace(DONE, energy_source=source, energy_j=0.5))
    assert value(metrics, "energy_joules_total", source=source) == 2.0


@pytest.mark.parametrize(("measured", "joules"), [(False, 1.5), (True, None)])
def test_without_a_sensor_there_is_no_energy_series(measured: bool, joules: float | None) -> None:
    metrics = Metrics(energy_measured=measured)
    metrics.finished(replace(DONE, energy_j=joules))
    assert b"joules" not in metrics.page().content


def test_failures_are_counted_by_kind_and_unknown_kinds_bounded() -> None:
    metrics = Metrics()
    before = series(metrics).keys()
    for kind in (*KINDS, "x" * 1000, "y\n"):
        metrics.failed(kind)
    assert {kind: value(metrics, "completions_total", outcome=kind) for kind in KINDS} == {
        kind: 3 if kind == "internal" else 1 for kind in KINDS
    }
    assert series(metrics).keys() == before  # all outcomes are there from the start: rates need a zero


def test_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    metrics.answered("POST", "/generate", 200, 0.2)
    metrics.answered("POST", "/generate", 429, 0.001)
    metrics.answered("BREW\n", "other", 404, 0.001)
    assert value(metrics, "http_requests_total", method="POST", route="/generate", status="200") == 1
    assert value(metrics, "http_requests_total", method="other", route="other", status="404") == 1
    assert value(metrics, "http_request_duration_seconds_count", method="POST", route="/generate") == 2
    assert value(metrics, "http_request_duration_seconds_bucket", method="POST", route="/generate", le="0.1") == 1


def test_a_strategy_has_as_many_series_as_it_uses_layers() -> None:
    metrics = Metrics()
    metrics.finished(DONE)
    names = [name for name, labels in series(metrics) if ("strategy", "fixed") in labels]
    assert len(names) == 6 + 2
    assert b"_created" not in metrics.page().content


def test_gauges_read_the_service_when_asked() -> None:
    class Load:
        waiting, running = 3, 2

    metrics, load = Metrics(), Load()
    metrics.bind(load)
    metrics.bind(load)
    assert (value(metrics, "queue_size"), value(metrics, "running_requests")) == (3, 2)
    load.waiting = 5
    assert value(metrics, "queue_size") == 5


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = Metrics(energy_measured=True)
    each, threads = 200, 4

    def work() -> None:
        for _ in range(each):
            metrics.finished(DONE)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        metrics.page()
    for worker in workers:
        worker.join()
    assert value(metrics, "generated_tokens_total", strategy="fixed") == 3 * each * threads
    assert value(metrics, "energy_joules_total", source="rapl") == 1.5 * each * threads


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.failed("overloaded")
    assert value(other, "completions_total", outcome="overloaded") == 0


def test_names_keep_to_the_conventions_in_both_formats() -> None:
    metrics = Metrics()
    metrics.finished(DONE)
    metrics.answered("POST", "/generate", 200, 0.2)
    page = metrics.page("application/openmetrics-text; version=1.0.0")
    assert page.media_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(page.content.decode())}
    ours = {name: family for name, family in families.items() if name.startswith("early_exit_")}
    assert len(ours) == len([name for name in families if not name.startswith("process_")])
    assert all(family.documentation.endswith(".") for family in ours.values())
    assert all(name.endswith("_seconds") for name, family in ours.items() if family.type == "histogram")
    assert metrics.page("text/plain").media_type.startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=abc", "text/plain;version=", ";;", "*/*"])
def test_a_strange_wish_for_a_format_gets_the_usual_one(accept: str) -> None:
    assert b"early_exit_completions_total" in Metrics().page(accept).content
