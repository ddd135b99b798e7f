"""llama.cpp's dialect: ``/infill`` as llama.vim uses it, and ``/completion``."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from harness.serving.jobs import Job

TIMINGS = [
    *("timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms", "timings/prompt_per_second"),
    *("timings/predicted_n", "timings/predicted_ms", "timings/predicted_per_token_ms"),
    "timings/predicted_per_second",
]


def ask(server: Any, route: str = "/infill", **body: Any) -> httpx.Response:
    given = {"input_prefix": "import math\n\n", "prompt": "def area(r):\n    "} if route == "/infill" else {}
    return httpx.post(f"{server.url}{route}", json={**given, "n_predict": 5, **body}, timeout=60)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: {") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_the_answer_is_compact_and_begins_with_its_content(server: Any) -> None:
    answer = ask(server)
    assert answer.status_code == 200
    assert answer.text.startswith('{"content":"')
    assert re.search(r'"content"\s*:"', answer.text), "llama.vim looks for this"
    assert re.sub(r'"(?:[^"\\]|\\.)*"', "", answer.text).count(" ") == 0


@pytest.mark.parametrize("route", ["/infill", "/completion"])
def test_the_numbers_add_up(server: Any, route: str) -> None:
    answer = ask(server, route, prompt="def area(r):\n    ").json()
    report, timings = answer["x_early_exit"], answer["timings"]
    assert answer["stop"] is True
    assert answer["stop_type"] in {"eos", "word", "limit"}
    assert answer["truncated"] is (report["prompt_tokens_truncated"] > 0)
    assert answer["tokens_predicted"] == timings["predicted_n"] == len(report["exit_layers"])
    assert 1 <= answer["tokens_predicted"] <= 5
    assert answer["tokens_evaluated"] == timings["prompt_n"] + timings["cache_n"] == report["prompt_tokens"]
    assert answer["tokens_cached"] == timings["cache_n"] == report["prompt_tokens_reused"]
    assert timings["prompt_ms"] + timings["predicted_ms"] == pytest.approx(
        (report["total_s"] - report["queue_s"]) * 1e3, abs=5e-3
    )
    later = timings["predicted_n"] - 1
    if later:
        assert timings["predicted_per_token_ms"] * later == pytest.approx(timings["predicted_ms"], abs=2e-3)
        assert timings["predicted_per_second"] * timings["predicted_per_token_ms"] == pytest.approx(1000)


def test_rates_that_nothing_was_measured_for_are_left_out(server: Any) -> None:
    timings = ask(server, n_predict=1).json()["timings"]
    assert timings["predicted_n"] == 1
    assert "predicted_per_second" not in timings
    assert "predicted_per_token_ms" not in timings
    assert None not in timings.values()


@pytest.mark.parametrize("route", ["/infill", "/completion"])
def test_a_stream_spells_the_whole_answer(server: Any, route: str) -> None:
    *tokens, last = events(ask(server, route, prompt="def f(x):\n    ", stream=True))
    assert [token["stop"] for token in tokens] == [False] * len(tokens)
    assert [token["tokens_predicted"] for token in tokens] == list(range(1, len(tokens) + 1))
    assert [token["exit_layer"] for token in tokens] == last["x_early_exit"]["exit_layers"]
    assert last["stop"] is True
    assert last["tokens_predicted"] == len(tokens)
    text = "".join(event["content"] for event in [*tokens, last])
    assert text == ask(server, route, prompt="def f(x):\n    ").json()["content"]


def test_fields_that_were_asked_for_come_flat_and_alone(server: Any) -> None:
    fields = ["content", *TIMINGS, "truncated", "tokens_cached", "", "timings/nonsense", "content/x"]
    answer = ask(server, response_fields=fields, n_predict=3).json()
    report = answer.pop("x_early_exit")
    expected = ["content", *TIMINGS, "truncated", "tokens_cached"]
    if len(report["exit_layers"]) == 1:
        expected = [field for field in expected if not field.startswith("timings/predicted_per")]
    assert list(answer) == expected


def test_nothing_to_predict_is_answered_without_the_engine(server: Any, seen: Seen, jobs: list[Job]) -> None:
    warm = {"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "t_max_predict_ms": 1}
    answer = httpx.post(f"{server.url}/infill", json=warm).json()
    assert answer["content"] == ""
    assert answer["stop"] is True
    assert answer["tokens_predicted"] == answer["tokens_evaluated"] == 0
    assert httpx.post(f"{server.url}/infill", json=warm | {"response_fields": [""]}).json() == {}
    assert not jobs
    assert not seen.prompts


def test_prefix_and_line_are_one_text_that_may_lose_its_beginning(server: Any, seen: Seen) -> None:
    ask(server, input_prefix="a = 1\n", prompt="b = ")
    ask(server, input_prefix="a = 1\n", prompt=None)
    ask(server, input_prefix=None, prompt="b = ")
    assert seen.prompts == [("a = 1\nb = ", None, True), ("a = 1\n", None, True), ("b = ", None, True)]


def test_a_blank_suffix_means_nothing_to_a_model_without_markers(
    server: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "fim", None)
    assert ask(server, input_suffix="\n\n").status_code == 200
    monkeypatch.setattr(server.service, "fim", True)
    ask(server, input_suffix="\n\n")
    assert [suffix for _, suffix, _ in seen.prompts] == [None, "\n\n"]


@pytest.mark.parametrize("limit", ["input_prefix", "prompt"])
def test_a_prompt_that_is_too_long_is_not_refused(server: Any, limit: str) -> None:
    answer = ask(server, **{limit: "total = 1\n" * 4000}, n_predict=1)
    assert answer.status_code == 200


def test_limits_of_time_and_tokens(server: Any, jobs: list[Job]) -> None:
    stop = ["\n", " "]
    for limit in (-1, -2, None, 10**9):
        ask(server, n_predict=limit, stop=stop)
    assert {job.max_new_tokens for job in jobs} == {server.service.config.max_new_tokens}
    jobs.clear()
    for limit_ms in (250, 1500.0, 0, -5, None):
        ask(server, n_predict=1, t_max_predict_ms=limit_ms, t_max_prompt_ms=1)
    assert [job.generate_s for job in jobs] == [0.25, 1.5, None, None, None]


def test_what_is_not_used_may_be_anything(server: Any) -> None:
    names = (*("input_extra", "samplers", "temperature", "n_indent", "id_slot", "t_max_prompt_ms", "logit_bias"),)
    for value in (None, "", [], {}, "x", 3, True, [{}], 10**400):
        body = dict.fromkeys(names, value)
        content = json.dumps({"input_prefix": "a", "prompt": "b", "n_predict": 1, **body})
        answer = httpx.post(f"{server.url}/infill", content=content, timeout=60)
        assert answer.status_code == 200, (value, answer.text)


def test_a_prompt_may_be_tokens(server: Any, seen: Seen) -> None:
    assert ask(server, "/completion", prompt=[1, 2, 3, 4]).json()["tokens_predicted"] >= 1
    assert [list(prompt) for prompt, _, _ in seen.prompts] == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/infill", {"early_exit": {"strategy": "nonsense"}}),
        ("/infill", {"early_exit": [1]}),
        ("/infill", {"input_prefix": "", "prompt": ""}),
        ("/infill", {"input_prefix": None, "prompt": 3}),
        ("/completion", {}),
        ("/completion", {"prompt": ""}),
        ("/completion", {"prompt": [-1]}),
        ("/completion", {"prompt": "a", "early_exit": "nonsense"}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_must_be_right_is_refused(server: Any, route: str, body: dict[str, Any], stream: bool) -> None:
    answer = ask(server, route, stream=stream, **body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    message = error["message"] if route == "/infill" else error
    assert message
    assert "\n" not in message


def test_early_exit_comes_from_the_address_where_an_editor_has_no_field(server: Any) -> None:
    body = {"input_prefix": "a = ", "n_predict": 2}
    answer = httpx.post(f"{server.url}/infill?early_exit=full", json=body, timeout=60).json()
    assert answer["x_early_exit"]["strategy"] == "full"
    assert ask(server, options={"early_exit": "full"}).json()["x_early_exit"]["strategy"] == "full"
    assert ask(server, early_exit={"strategy": "full"}).json()["x_early_exit"]["strategy"] == "full"


def test_a_failure_after_the_first_token_is_the_last_event(server: Any, failing: None) -> None:
    first, last = events(ask(server, stream=True))
    assert first["stop"] is False
    assert last["error"]["message"] == "the engine failed."
    assert ask(server).status_code == 424


class Seen:
    """Prompts that were encoded: text or tokens, suffix, and whether it may lose its beginning."""

    def __init__(self) -> None:
        self.prompts: list[tuple[Any, str | None, bool]] = []


@pytest.fixture
def seen(server: Any, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What was encoded during the test; the service still does it."""
    noted = Seen()
    encode = server.service.encode

    def note(prompt: Any, suffix: str | None, *, truncate: bool) -> Any:
        noted.prompts.append((prompt, suffix, truncate))
        return encode(prompt, suffix, truncate=truncate)

    monkeypatch.setattr(server.service, "encode", note)
    return noted


@pytest.mark.parametrize("bad", ["-1", "[]", '""', "1.5", "true"])
def test_a_megabyte_of_bad_token_ids_is_refused_in_one_line(server: Any, bad: str) -> None:
    body = '{"prompt":[' + ",".join([bad] * (900_000 // (len(bad) + 1))) + "]}"
    answer = httpx.post(f"{server.url}/completion", content=body, timeout=30)
    assert answer.status_code == 422
    assert len(answer.content) < 500


def test_completion_takes_one_prompt(server: Any) -> None:
    answer = httpx.post(f"{server.url}/completion", json={"prompt": ["a", "b"]})
    assert answer.status_code == 422
    assert "send one" in answer.json()["error"]["message"]


def test_a_file_s_first_position_has_text_after_it_alone(
    server: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without markers has nothing to complete there."""
    monkeypatch.setattr(server.service, "fim", None)
    assert ask(server, input_prefix="", prompt="", input_suffix="x = 1").status_code == 422
    monkeypatch.setattr(server.service, "fim", True)
    ask(server, input_prefix="", prompt="", input_suffix="x = 1")
    assert [(prompt, suffix) for prompt, suffix, _ in seen.prompts] == [("", "x = 1")]
