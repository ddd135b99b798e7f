"""Answers of a server of a tiny model in each dialect, ids, times and energy left out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.reference.command import SETTINGS

PROMPT = "def load_path(items, limit=0):\n    for item in"
OPTIONS = (
    *("--model", "tiny-llama", "--port", "0", "--threads", "1", "--energy", "none", "--weights-format", "float32"),
    *("--strategy", "confidence:threshold=0.3", "--strategy", "fixed:layer=4", "--strategy", "patience:patience=2"),
    *("--decode", "lossy", "--max-new-tokens", "48", "--batch-size", "4"),
)
LOSSLESS = {"strategy": "confidence", "decode": "lossless", "draft_max": 4}
CALLS: dict[str, tuple[str, Any]] = {
    "openai": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9}),
    "openai root": ("/completions", {"prompt": PROMPT, "max_tokens": 4}),
    "openai stream": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "stream": True,
                                          "stream_options": {"include_usage": True}}),
    "openai many": ("/v1/completions", {"prompt": [PROMPT, "import"], "max_tokens": 3, "n": 2, "echo": True}),
    "openai logprobs": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 3, "logprobs": 2}),
    "openai ids": ("/v1/completions", {"prompt": [5, 6, 7, 8], "max_tokens": 3}),
    "openai stop": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 30, "stop": ["e", "\n"]}),
    "openai full": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "early_exit": {"strategy": "full"}}),
    "openai fixed": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "early_exit": {"strategy": "fixed"}}),
    "openai patience": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "early_exit": {"strategy": "patience"}}),
    "openai lossless": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "early_exit": LOSSLESS}),
    "openai lossless stream": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "early_exit": LOSSLESS,
                                                   "stream": True}),
    "openai lookup": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 20,
                                          "early_exit": {"strategy": "full", "decode": "lossless+lookup"}}),
    "openai threshold": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "early_exit": {"threshold": 0.05}}),
    "openai stop rule": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 20, "early_exit": {"stop_rule": "line"}}),
    "openai suffix": ("/v1/completions", {"prompt": PROMPT, "suffix": "return", "max_tokens": 3}),
    "openai no prompt": ("/v1/completions", {"max_tokens": 3}),
    "openai wrong type": ("/v1/completions", {"prompt": PROMPT, "max_tokens": "many"}),
    "openai negative": ("/v1/completions", {"prompt": PROMPT, "max_tokens": -3}),
    "openai unknown strategy": ("/v1/completions", {"prompt": PROMPT, "early_exit": {"strategy": "nothing"}}),
    "openai unknown control": ("/v1/completions", {"prompt": PROMPT, "early_exit": {"treshold": 0.5}}),
    "openai bad threshold": ("/v1/completions", {"prompt": PROMPT, "early_exit": {"threshold": 7}}),
    "openai bad decode": ("/v1/completions", {"prompt": PROMPT, "early_exit": {"decode": "lossles"}}),
    "openai too long": ("/v1/completions", {"prompt": PROMPT * 60, "max_tokens": 3}),
    "openai foreign id": ("/v1/completions", {"prompt": [5, 999999], "max_tokens": 3}),
    "openai chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}),
    "openai broken": ("/v1/completions", b'{"prompt": '),
    "tgi": ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 9}}),
    "tgi details": ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 9, "details": True,
                                                                   "decoder_input_details": True}}),
    "tgi stop": ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 30, "stop": ["e"],
                                                                "return_full_text": True}}),
    "tgi stream": ("/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 9}}),
    "tgi root": ("/", {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}),
    "tgi root stream": ("/", {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}, "stream": True}),
    "tgi model": ("/models/tiny-llama", {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}),
    "tgi early exit": ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 9,
                                                                      "early_exit": {"strategy": "patience"}}}),
    "tgi lossless": ("/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 9,
                                                                       "early_exit": LOSSLESS}}),
    "tgi no input": ("/generate", {"parameters": {}}),
    "tgi wrong type": ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": "many"}}),
    "tgi unknown strategy": ("/generate", {"inputs": PROMPT, "parameters": {"early_exit": {"strategy": "nothing"}}}),
    "tgi too long": ("/generate_stream", {"inputs": PROMPT * 60}),
    "ollama": ("/api/generate", {"prompt": PROMPT, "options": {"num_predict": 9}, "stream": False}),
    "ollama stream": ("/api/generate", {"prompt": PROMPT, "options": {"num_predict": 9}}),
    "ollama stop": ("/api/generate", {"prompt": PROMPT, "options": {"num_predict": 30, "stop": ["e"]},
                                      "stream": False}),
    "ollama lossless": ("/api/generate", {"prompt": PROMPT, "options": {"num_predict": 9, "early_exit": LOSSLESS},
                                          "stream": False}),
    "ollama no prompt": ("/api/generate", {"stream": False}),
    "ollama suffix": ("/api/generate", {"prompt": PROMPT, "suffix": "return", "stream": False}),
    "ollama wrong type": ("/api/generate", {"prompt": PROMPT, "options": {"num_predict": "many"}}),
    "ollama unknown strategy": ("/api/generate", {"prompt": PROMPT, "options": {"early_exit": {"strategy": "x"}}}),
    "ollama chat": ("/api/chat", {"messages": [{"role": "user", "content": PROMPT}]}),
    "llama.cpp": ("/completion", {"prompt": PROMPT, "n_predict": 9}),
    "llama.cpp stream": ("/completion", {"prompt": PROMPT, "n_predict": 9, "stream": True}),
    "llama.cpp stop": ("/completion", {"prompt": PROMPT, "n_predict": 30, "stop": ["e"]}),
    "llama.cpp infill": ("/infill", {"input_prefix": PROMPT, "input_suffix": "", "n_predict": 5}),
    "llama.cpp infill stream": ("/infill", {"input_prefix": PROMPT, "input_suffix": "", "n_predict": 5,
                                             "stream": True}),
    "llama.cpp infill suffix": ("/infill", {"input_prefix": PROMPT, "input_suffix": "return", "n_predict": 5}),
    "llama.cpp early exit": ("/completion", {"prompt": PROMPT, "n_predict": 9, "early_exit": {"strategy": "fixed"}}),
    "llama.cpp lossless": ("/completion", {"prompt": PROMPT, "n_predict": 9, "early_exit": LOSSLESS}),
    "llama.cpp no prompt": ("/completion", {"n_predict": 3}),
    "llama.cpp wrong type": ("/completion", {"prompt": PROMPT, "n_predict": "many"}),
    "llama.cpp unknown strategy": ("/completion", {"prompt": PROMPT, "early_exit": {"strategy": "nothing"}}),
    "nowhere": ("/v1/nowhere", {}),
}  # fmt: skip
LOOKS = ("/health", "/info", "/v1/models", "/models", "/v1/models/tiny-llama", "/v1/models/nothing", "/openapi.json",
         "/props", "/api/tags", "/generate")  # fmt: skip
OF_TIME = re.compile(
    r"(_s|_ms|_ns|_j|_w|_j_per_\w+|duration|per_second|seconds|created|created_at)$|^(id|time|sha|pid)$"
)


def record() -> dict[str, Any]:
    """Return call → status and answer, its events one by one; answers to four clients at once; metrics' names."""
    log = Path("serve.log")
    with log.open("wb") as written:
        command = [sys.executable, "-c", "from harness.cli import main; main()", "serve", *OPTIONS]
        process = subprocess.Popen(command, env=os.environ | SETTINGS, stdout=written, stderr=subprocess.STDOUT)
    try:
        url = _url(process, log)
        with httpx.Client(base_url=url, timeout=60) as client:
            found = {name: _asked(client, *call) for name, call in CALLS.items()}
            found |= {f"GET {path}": _answer(client.get(path)) for path in LOOKS}
            header = {"X-Early-Exit": json.dumps({"strategy": "fixed"})}
            found["header"] = _answer(client.post(*CALLS["openai"][:1], json=CALLS["openai"][1], headers=header))
            found["host"] = _answer(client.get("/info", headers={"Host": "elsewhere.example"}))
            found["origin"] = _answer(client.get("/info", headers={"Origin": "http://elsewhere.example"}))
            several = ("openai", "tgi", "ollama", "llama.cpp", "openai fixed", "openai lossless")
            with ThreadPoolExecutor(len(several)) as together:
                answers = together.map(lambda name: _asked(client, *CALLS[name]), several)
                found["at once"] = [_alone(answer[1]) for answer in answers]
            metrics = client.get("/metrics").text
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    names = sorted({line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE")})
    schema = found.pop("GET /openapi.json")
    routes = {path: sorted(methods) for path, methods in schema[1]["paths"].items()}
    return {"code": code, "answers": found, "metrics": names, "routes": routes, "texts": {"metrics": _help(metrics)}}


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    limit = time.monotonic() + 900
    while time.monotonic() < limit and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            try:
                if httpx.get(f"{found[0]}/health").status_code == 200:
                    return found[0]
            except httpx.TransportError:
                pass
        time.sleep(0.1)
    raise RuntimeError(f"the server does not answer: {log.read_text()}")


def _asked(client: httpx.Client, path: str, body: Any) -> list[Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _answer(client.post(path, content=content, headers={"Content-Type": "application/json"}))


def _answer(answer: httpx.Response) -> list[Any]:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "application/json":
        return [answer.status_code, _plain(answer.json())]
    if kind == "application/x-ndjson":
        return [answer.status_code, [_plain(json.loads(line)) for line in answer.text.splitlines()]]
    if kind == "text/event-stream":
        return [answer.status_code, [_event(line) for line in answer.text.splitlines() if line]]
    return [answer.status_code, kind, answer.text[:200]]


def _event(line: str) -> Any:
    name, _, value = line.partition(":")
    try:
        return {name: _plain(json.loads(value))}
    except ValueError:
        return line


def _plain(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: type(value).__name__ if _varies(key, value) else _plain(value) for key, value in document.items()}
    return [_plain(value) for value in document] if isinstance(document, list) else document


def _varies(key: str, value: Any) -> bool:
    """Whether it is a time, an energy or an id of an answer."""
    return (key == "id" and isinstance(value, str)) or bool(OF_TIME.search(key) and not isinstance(value, dict))


def _alone(document: Any) -> Any:
    """Leave out which earlier prompt was reused, where requests race."""
    if isinstance(document, dict):
        kept = {key: value for key, value in document.items() if key not in ("prompt_tokens_reused", "cache_n")}
        return {key: _alone(value) for key, value in kept.items()}
    return [_alone(value) for value in document] if isinstance(document, list) else document


def _help(metrics: str) -> str:
    return "\n".join(line for line in metrics.splitlines() if line.startswith("#"))
