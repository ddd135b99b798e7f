"""llm-ls, the language server behind llm-vscode and llm.nvim, byte by byte with curl; and llama.vim, which is curl.

llm-ls builds the body as :func:`llm_ls_body` does, ignores the status, and takes the answer only in one of the shapes
that :func:`llm_ls_reads` knows: its first match counts, and anything else is an error message about its parser.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from typing import Any

import httpx
import pytest

from harness.serving.failures import InvalidRequestError
from harness.serving.http.refusals import refusal

PROMPT = "import numpy as np\n\ndef norm(v):\n    "

PATHS = {
    "huggingface": "/models/smollm2-135m",
    "tgi": "/generate",
    "ollama": "/api/generate",
    "openai": "/v1/completions",
    "llamacpp": "/completion",
}

BODIES: dict[str, list[dict[str, Any]]] = {
    "tgi": [
        {"parameters": {"max_new_tokens": 4, "temperature": 0.2, "top_p": 0.95}},
        {"parameters": {"max_new_tokens": 4, "temperature": None, "stop": None, "seed": None, "details": None}},
        {"parameters": {"max_new_tokens": 4, "early_exit": {"strategy": "full"}}, "options": {"use_cache": False}},
        {"parameters": {"max_new_tokens": 4}, "early_exit": {"strategy": "full"}, "stream": None},
    ],
    "ollama": [
        {"options": {"num_predict": 4, "temperature": 0.2, "top_p": 0.95}},
        {"options": {"num_predict": 4, "stop": None, "temperature": None}, "suffix": None, "early_exit": None},
        {"options": {"num_predict": 4, "early_exit": {"strategy": "full"}}},
    ],
    "openai": [
        {"max_tokens": 4, "temperature": 0.2, "top_p": 0.95},
        {"max_tokens": 4, "stop": None, "suffix": None, "logprobs": None, "early_exit": None},
        {"max_tokens": 4, "early_exit": {"strategy": "full"}},
    ],
    "llamacpp": [{"n_predict": 4, "temperature": 0.2}, {"n_predict": 4, "early_exit": {"strategy": "full"}}],
}
BODIES["huggingface"] = BODIES["tgi"]
BODIES["tgi"] = [*BODIES["tgi"], {}]  # without parameters they are nested; once, since nothing limits its tokens

CASES = [(backend, body) for backend in PATHS for body in BODIES[backend]]


def llm_ls_body(backend: str, request_body: dict[str, Any], prompt: str = PROMPT) -> dict[str, Any]:
    """What llm-ls sends for the setting ``requestBody``."""
    body = copy.deepcopy(request_body)
    if backend in {"huggingface", "tgi"}:
        body["inputs"] = prompt
        if isinstance(body.get("parameters"), dict):
            body["parameters"]["return_full_text"] = False
        else:
            body["parameters"] = {"parameters": {"return_full_text": False}}
        return body
    body["prompt"] = prompt
    return body if backend == "llamacpp" else body | {"model": "smollm2-135m", "stream": False}


def llm_ls_reads(backend: str, text: str) -> tuple[list[str], str | None]:
    """Return the completions that llm-ls finds in an answer, and the error it shows."""
    answer = json.loads(text)
    if backend == "huggingface" and isinstance(answer, list):
        return [one["generated_text"] for one in answer], None
    assert isinstance(answer, dict), "a list is an error for this backend"
    key = {"huggingface": "generated_text", "tgi": "generated_text", "ollama": "response", "llamacpp": "content"}
    if backend == "openai":
        if "choices" in answer:
            return [choice["text"] for choice in answer["choices"]], None
        for item in answer["detail"]:
            assert isinstance(item["loc"], str | int)
        return [], "; ".join(f"{item['loc']}: {item['msg']} ({item['type']})" for item in answer["detail"])
    if isinstance(answer.get(key[backend]), str):
        return [answer[key[backend]]], None
    assert isinstance(answer["error"], str), "llm-ls takes a text here"
    return [], answer["error"]


def curl(url: str, body: dict[str, Any] | str, *arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--no-buffer", "--request", "POST", "--url", url]
    command += ["--header", "Content-Type: application/json", *arguments, "--data", "@-"]
    sent = body if isinstance(body, str) else json.dumps(body)
    return subprocess.run(command, input=sent, capture_output=True, text=True, timeout=60, check=True).stdout


def needs(server: Any, path: str) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    if not any(known == path or (known.startswith("/models/") and path.startswith("/models/")) for known in paths):
        pytest.skip(f"{path} is not served yet")


@pytest.mark.parametrize(("backend", "request_body"), CASES)
def test_llm_ls_finds_its_completion(server: Any, backend: str, request_body: dict[str, Any]) -> None:
    needs(server, PATHS[backend])
    body = llm_ls_body(backend, request_body)
    completions, error = llm_ls_reads(backend, curl(server.url + PATHS[backend], body))
    assert error is None
    assert len(completions) == 1
    assert not completions[0].startswith(PROMPT), "the prompt is not part of the completion"


@pytest.mark.parametrize("backend", ["huggingface", "tgi", "ollama"])  # llama.cpp's own errors it cannot read either
@pytest.mark.parametrize("fault", [{"early_exit": {"strategy": "nonsense"}}, {"inputs": "", "prompt": ""}])
def test_llm_ls_shows_what_is_wrong(server: Any, backend: str, fault: dict[str, Any]) -> None:
    needs(server, PATHS[backend])
    body = llm_ls_body(backend, {}) | fault
    completions, error = llm_ls_reads(backend, curl(server.url + PATHS[backend], body))
    assert not completions
    assert error
    assert "\n" not in error


@pytest.mark.parametrize("backend", ["huggingface", "tgi", "ollama"])  # llama.cpp's own errors it cannot read either
def test_llm_ls_shows_that_a_body_is_no_json(server: Any, backend: str) -> None:
    needs(server, PATHS[backend])
    assert llm_ls_reads(backend, curl(server.url + PATHS[backend], "{"))[1]


def test_llm_ls_shows_what_an_openai_route_refuses() -> None:
    said = json.dumps(refusal("/v1/completions", InvalidRequestError("strategy 'x' is not loaded.")))
    completions, error = llm_ls_reads("openai", said)
    assert not completions
    assert error is not None
    assert "strategy 'x' is not loaded." in error


LLAMA_VIM = {
    "input_prefix": "import math\n\n",
    "input_suffix": "\n\nprint(area(2))\n",
    "input_extra": [{"text": "RADIUS = 2\n", "time": [0, 1], "filename": "settings.py"}],
    "prompt": "def area(r):\n    ",
    "n_predict": 6,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        *("content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms"),
        *("timings/prompt_per_second", "timings/predicted_n", "timings/predicted_ms"),
        *("timings/predicted_per_token_ms", "timings/predicted_per_second", "truncated", "tokens_cached"),
    ],
}


def test_llama_vim_completes(server: Any) -> None:
    readable = server.service.fim or server.service.config.suffix == "ignore"
    said = curl(f"{server.url}/infill", LLAMA_VIM)
    if not readable:
        assert "suffix" in json.loads(said)["error"]["message"]
        return
    assert said.startswith('{"content":"'), "llama.vim looks for this text"
    assert "\n" not in said, "Vim's channel hands the answer over by lines"
    answer = json.loads(said)
    assert answer["timings/predicted_n"] == len(answer["x_early_exit"]["exit_layers"])
    assert not any(value is None for name, value in answer.items() if name.startswith("timings/"))


def test_llama_vim_warms_a_cache_that_is_not_there(server: Any) -> None:
    warm = {**LLAMA_VIM, "input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "temperature": 0.0}
    warm |= {"samplers": [], "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""]}
    assert json.loads(curl(f"{server.url}/infill", warm, "--header", "Authorization: Bearer ")) == {}


def test_llama_vim_sets_early_exit_in_its_address(server: Any) -> None:
    body = {**LLAMA_VIM, "input_suffix": "\n" if server.service.fim else ""}
    answer = json.loads(curl(f"{server.url}/infill?early_exit=full", body))
    assert answer["x_early_exit"]["strategy"] == "full"
    refused = json.loads(curl(f"{server.url}/infill?early_exit=nonsense", body))
    assert "nonsense" in refused["error"]["message"]
    assert "content" not in refused
