"""What operators and clients ask a server about itself."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.serving.config import ServeConfig
from harness.serving.http.app import make_app
from harness.serving.metrics import Metrics
from harness.serving.service import Service


class Unready(Service):
    """A service before or after its time: what is known then, and nothing else."""

    model_name = "some-model"

    def __init__(self, state: Any, failure: str | None = None) -> None:
        self.config, self.metrics = ServeConfig(), Metrics()
        self.state, self.failure, self.weights_source = state, failure, ""


def get(service: Service, path: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(send())


def test_a_ready_server_is_healthy(server: Any) -> None:
    answer = httpx.get(f"{server.url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "error": None})
    head = httpx.head(f"{server.url}/health")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("state", "failure"), [("loading", None), ("draining", None), ("failed", "weights of 3 layers are missing.")]
)
def test_another_says_503_and_why(state: Any, failure: str | None) -> None:
    service = Unready(state, failure)
    answer = get(service, "/health")
    assert (answer.status_code, answer.json()) == (503, {"status": state, "error": failure})
    assert answer.headers["retry-after"] == "1"
    for path in ("/info", "/v1/models", "/models"):
        refused = get(service, path)
        assert refused.status_code == 503
        assert (failure or "") in refused.text


def test_info_is_what_the_service_is(server: Any) -> None:
    service, info = server.service, httpx.get(f"{server.url}/info").json()
    config, facts = service.config, service.info
    assert info["model_id"] == service.model_name
    assert info["version"] == version("early-exit-harness")
    assert (info["model_dtype"], info["model_device_type"]) == (service.dtype, service.device)
    assert info["sampling"] == "greedy"
    assert info["max_concurrent_requests"] == config.batch_size + config.max_queue
    assert info["max_input_tokens"] < info["max_total_tokens"] <= facts.max_positions
    assert info["max_total_tokens"] <= info["max_input_tokens"] + config.max_new_tokens
    exits = info["early_exit"]
    assert exits["num_layers"] == facts.num_layers
    assert exits["exit_points"] == list(facts.exit_points)
    assert max(exits["exit_points"]) < exits["num_layers"]
    assert exits["kv"] == config.kv
    assert exits["weights"]["kind"] in ("pretrained", "tuned", "random")
    assert exits["weights"]["source"]


def test_info_names_every_strategy_with_options_that_a_request_may_use(server: Any) -> None:
    exits = httpx.get(f"{server.url}/info").json()["early_exit"]
    strategies = {one["name"]: one for one in exits["strategies"]}
    assert len(strategies) == len(exits["strategies"])
    assert "full" in strategies
    assert [one["name"] for one in exits["strategies"] if one["default"]] == [exits["default"]["strategy"]]
    for name, one in strategies.items():
        assert one["limits"].keys() <= one["options"].keys()
        assert one["descriptions"].keys() <= one["options"].keys()
        for option, (low, high) in one["limits"].items():
            assert one["options"][option] is None or low <= one["options"][option] <= high
        setting = server.service.settings.resolve({"strategy": name, **one["options"]})
        assert setting.name == name.partition(":")[0]
        assert one["options"].items() <= setting.options.items()


def test_energy_is_called_measured_only_with_a_sensor(server: Any) -> None:
    energy = httpx.get(f"{server.url}/info").json()["early_exit"]["energy"]
    assert energy["source"] == server.service.energy_source
    assert energy["measured"] == (energy["source"] in ("nvml", "rapl", "soc"))
    assert energy["description"]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_the_model_is_listed(server: Any, path: str) -> None:
    listed = httpx.get(f"{server.url}{path}").json()
    assert listed["object"] == "list"
    assert [(one["id"], one["object"]) for one in listed["data"]] == [(server.service.model_name, "model")]


def test_a_real_client_reads_the_models(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == model.id
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.models.retrieve("another/model")


def test_metrics_can_be_scraped(server: Any) -> None:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.labels
    }
    assert values["early_exit_queue_size"] == server.service.waiting
    assert values["early_exit_running_requests"] == server.service.running
    open_metrics = httpx.get(f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")
