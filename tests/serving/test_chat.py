"""Conversations: written as the model's template writes them, and answered with the tokens of that text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Running

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "# {{ message['role'] }}: {{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}# answer: {% endif %}"
)
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "load x"}]}]
WRITTEN = "# system: Be brief.\n# user: load x\n# answer: "
PATH = "/v1/chat/completions"


@pytest.fixture
def server(start: Callable[..., Running], tiny_llama: Path, tmp_path: Path) -> Running:
    """The tiny model with a chat template."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return start(model=str(folder))


def post(server: Running, path: str = PATH, **body: Any) -> httpx.Response:
    given = {"max_tokens": 8, "early_exit": "fixed:layer=4", **body}
    return httpx.post(f"{server.url}{path}", json=given, timeout=60)


def test_an_answer_is_the_completion_of_what_the_template_writes(server: Running) -> None:
    expected = post(server, "/v1/completions", prompt=WRITTEN).json()
    answer = post(server, messages=TURNS, n=2).json()
    assert answer["object"] == "chat.completion"
    for index, choice in enumerate(answer["choices"]):
        assert choice["index"] == index
        assert choice["message"] == {"role": "assistant", "content": expected["choices"][0]["text"]}
        assert choice["finish_reason"] == expected["choices"][0]["finish_reason"]
        assert choice["x_early_exit"]["exit_layers"] == expected["choices"][0]["exit_layers"]
    assert answer["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]
    short = post(server, messages=TURNS, max_completion_tokens=2).json()
    assert short["usage"]["completion_tokens"] == 2


def test_a_stream_says_the_same(server: Running) -> None:
    whole = post(server, messages=TURNS).json()["choices"][0]["message"]["content"]
    text = post(server, messages=TURNS, stream=True, stream_options={"include_usage": True}).text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]"
    *chunks, usage = map(json.loads, events[:-1])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta["content"] for delta in deltas) == whole
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][:-1] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "no tools here"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "something else than text. Send text alone",
        ),
        ({"messages": []}, "messages"),
        ({}, "messages"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openai_s_words(server: Running, body: dict[str, Any], said: str) -> None:
    refused = post(server, **body)
    assert refused.status_code == 400
    assert said in refused.json()["error"]["message"]


def test_a_model_without_a_template_says_where_to_go(start: Callable[..., Running]) -> None:
    refused = post(start(), messages=TURNS)
    assert "has no chat template that takes this conversation" in refused.json()["error"]["message"]
    assert "Send a prompt to /v1/completions" in refused.json()["error"]["message"]
