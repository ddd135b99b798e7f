"""Requests of editors, as their own sources build them; those of llm-ls and llama.vim have a module of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

PREFIX = "import math\n\ndef area(r):\n    "

# Continue adds them to what the template says
CONTINUE_STOPS = ["\n\n", "\r\n\r\n", "/src/", "#- coding: utf-8", "```"]


def sse(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Read events as Continue does: by lines, up to ``[DONE]``."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def test_continue_completes(server: Any) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    if "/v1/completions" not in paths:
        pytest.skip("/v1/completions is not served yet")
    body = {
        "prompt": PREFIX,
        "model": "smollm2-135m",
        "max_tokens": 6,
        "temperature": 0.01,
        "top_p": None,
        "frequency_penalty": None,
        "presence_penalty": None,
        "stop": CONTINUE_STOPS,
        "stream": True,
        "early_exit": "full",  # what requestOptions.extraBodyProperties add
    }
    headers = {"Authorization": "Bearer none", "api-key": "none", "x-api-key": "none"}
    address = httpx.URL(f"{server.url}/v1/").join("completions")
    with httpx.stream("POST", address, json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200
        texts = [event["choices"][0]["text"] for event in sse(response) if event["choices"]]
    whole = httpx.post(address, json={**body, "stream": False}, timeout=60).json()
    assert "".join(texts) == whole["choices"][0]["text"]
    assert whole["x_early_exit"]["strategy"] == "full"


def test_continue_completes_as_with_ollama(server: Any) -> None:
    body = {
        "model": "smollm2-135m",
        "prompt": PREFIX,
        "raw": True,
        "keep_alive": 1800,
        "template": None,
        "options": {"num_predict": 6, "temperature": 0.01, "num_ctx": 2048, "stop": CONTINUE_STOPS, "mirostat": None},
    }
    text = ""
    with httpx.stream("POST", f"{server.url}/api/generate", json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            piece = json.loads(line)
            assert "error" not in piece
            text += piece["response"]
            if piece["done"]:
                break
    assert text
    assert piece["done"]


def test_llama_vscode_completes(server: Any) -> None:
    suffix = "\n\nprint(area(2))\n"
    body = {
        "id_slot": 0,
        "input_prefix": "import math\n\n",
        "prompt": "def area(r):\n    ",
        "input_suffix": suffix,
        "input_extra": [{"filename": "settings.py", "text": "RADIUS = 2\n"}],
        "n_predict": 6,
        "top_k": 40,
        "top_p": 0.99,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 2500,
        "lora": None,
        "model": None,
        "nprobs": 0,
    }
    answer = httpx.post(f"{server.url}/infill", json=body, timeout=60)
    if server.service.fim or server.service.config.suffix == "ignore":
        read = answer.json()
        assert isinstance(read["content"], str)
        assert read["timings"]["predicted_n"] == read["tokens_predicted"] <= 6
        assert read["x_early_exit"]["suffix"] in {"used", "ignored"}
    else:
        assert answer.status_code == 422
        assert "suffix" in answer.json()["error"]["message"]
