"""Every counter says what happened, in a bounded number of series, and holds no joule that nobody measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from harness.appearance.visible_text import is_hidden
from harness.contracts import EnergyReading
from harness.records import Work
from harness.serving.metrics import KINDS, Metrics
from harness.serving.worker import EnergyShares
from tests.serving.conftest import DONE


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.page()[0].decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return series(metrics)[f"early_exit_{name}", tuple(sorted(labels.items()))]


def test_a_label_hides_nothing() -> None:
    metrics = Metrics(energy_measured=True)
    setting = replace(DONE.setting, name="fi\x1b[2J\u202e\nxed")
    metrics.finished(replace(DONE, setting=setting, energy_source="ra\x9bpl"))
    assert value(metrics, "generated_tokens_total", strategy=r"fi\x1b[2J\u202e xed") == 3
    assert value(metrics, "energy_joules_total", source=r"ra\x9bpl") == 1.5
    text = metrics.page()[0].decode()
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


def test_failures_are_counted_by_kind_and_unknown_kinds_bounded() -> None:
    metrics = Metrics()
    before = series(metrics).keys()
    for kind in (*KINDS, "x" * 1000, "y\n"):
        metrics.failed(kind)
    assert {kind: value(metrics, "completions_total", outcome=kind) for kind in KINDS} == {
        kind: 3 if kind == "internal" else 1 for kind in KINDS
    }
    assert series(metrics).keys() == before  # all outcomes are there from the start: rates need a zero


def test_joules_are_exported_with_their_sensor_and_without_one_not_at_all() -> None:
    metrics = Metrics(energy_measured=True)
    for joules in (1.5, 0.5, None):
        metrics.finished(replace(DONE, energy_source="a-wall-plug", energy_j=joules))
    assert value(metrics, "energy_joules_total", source="a-wall-plug") == 2.0
    metrics = Metrics()
    metrics.finished(DONE)
    assert b"joules" not in metrics.page()[0]


def test_requests_are_counted_and_gauges_read_the_service_in_both_formats() -> None:
    load, metrics = SimpleNamespace(waiting=3, running=2), Metrics()
    metrics.bind(load)
    metrics.finished(DONE)
    for method, route, status, seconds in (("POST", "/generate", 200, 0.2), ("BREW\n", "other", 404, 0.001)):
        metrics.answered(method, route, status, seconds)
    assert (value(metrics, "queue_size"), value(metrics, "running_requests")) == (3, 2)
    load.waiting = 5
    assert value(metrics, "queue_size") == 5
    assert value(metrics, "http_requests_total", method="POST", route="/generate", status="200") == 1
    assert value(metrics, "http_requests_total", method="other", route="other", status="404") == 1
    assert value(metrics, "http_request_duration_seconds_bucket", method="POST", route="/generate", le="0.1") == 0
    page, media_type = metrics.page("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(page.decode())}
    ours = {name: family for name, family in families.items() if name.startswith("early_exit_")}
    assert len(ours) == len([name for name in families if not name.startswith("process_")])
    assert all(name.endswith("_seconds") for name, family in ours.items() if family.type == "histogram")
    assert b"_created" not in page
    for strange in ("application/openmetrics-text;version=abc", "text/plain;version=", ";;", "*/*"):
        assert metrics.page(strange)[1].startswith("text/plain; version=0.0.4")


# ---------------------------------------------------------------------------------------------------- shares of energy


class Scripted:
    """A meter that reads given joules, window by window."""

    source, description, sensor_period_s = "rapl", "scripted", None

    def __init__(self, *energies_j: float | None) -> None:
        self.energies_j, self.open = list(energies_j), False

    def begin(self) -> None:
        assert not self.open
        self.open = True

    def end(self) -> EnergyReading:
        assert self.open
        self.open = False
        return EnergyReading(self.energies_j.pop(0), "rapl", "package", 1.0, 1.0)

    def close(self) -> None: ...


def test_those_who_run_together_share_in_equal_parts() -> None:
    meter = Scripted(4.0, 6.0, 1.0)
    shares = EnergyShares(meter)
    shares.begin(0)  # 4 J alone
    shares.begin(1)  # 6 J together
    assert shares.end(0) == 7.0
    assert shares.end(1) == 4.0  # 3 J, and 1 J alone
    assert not meter.open, "nothing is measured while nobody runs"
    assert shares.end(1) is None, "it has ended"
    shares = EnergyShares(Scripted(None, 2.0, 5.0))
    shares.begin(0)
    shares.begin(1)
    assert (shares.end(0), shares.end(1)) == (None, 6.0), "a missing number is never zero"
