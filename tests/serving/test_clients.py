"""Real clients, and the settings that are printed for them: read by JSON, YAML, Vim and Python, and answered.

llama.vim is curl. llm-ls, Continue and llama.vscode are spoken as their sources do.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import yaml
from huggingface_hub import InferenceClient, constants
from huggingface_hub import errors as hub

from harness.serving.completions import DrainingError, GenerationError, OverloadedError
from harness.serving.config import ServeConfig
from harness.serving.page import clients, snippet
from tests.serving.conftest import fails_at

PROMPT = "import numpy as np\n\ndef norm(v):\n    "


# --------------------------------------------------------------------------------------------------------- huggingface


@pytest.fixture
def client(server: Any, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # loopback is no hub
    return InferenceClient(model=server.url)


def test_the_hubs_client_gets_one_text_in_all_four_forms(server: Any, client: InferenceClient) -> None:
    plain = client.text_generation(PROMPT, max_new_tokens=5)
    whole = client.text_generation(PROMPT, max_new_tokens=5, details=True)
    texts = list(client.text_generation(PROMPT, max_new_tokens=5, stream=True))
    events = list(client.text_generation(PROMPT, max_new_tokens=5, stream=True, details=True))
    assert plain
    assert whole.generated_text == plain == "".join(texts) == "".join(event.token.text for event in events)
    assert whole.details is not None
    tokens = whole.details.tokens
    assert whole.details.generated_tokens == len(tokens) == len(texts) == len(events) <= 5
    assert "".join(token.text for token in tokens) == plain
    assert [token.id for token in tokens] == [event.token.id for event in events]
    *before, last = events
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert all(event.generated_text is None and event.details is None for event in before)
    assert last.generated_text == plain
    assert last.details is not None
    assert last.details.generated_tokens == len(events)
    assert last.details.finish_reason == whole.details.finish_reason
    assert last.details.input_length > 0
    for path in ("/generate", f"/models/{server.service.model_name}", "/"):
        assert client.text_generation(PROMPT, model=server.url + path, max_new_tokens=5) == plain


def test_the_hubs_client_raises_its_own_errors(
    client: InferenceClient, refusing: Callable[[Exception], None], changed: Any
) -> None:
    with pytest.raises(hub.ValidationError, match="inputs"):
        client.text_generation("")
    changed(fails_at(3))
    heard: list[str] = []
    with pytest.raises(hub.GenerationError, match="the engine failed"):
        heard.extend(client.text_generation(PROMPT, max_new_tokens=8, stream=True))
    assert len(heard) == 3
    for error, raised in (
        (OverloadedError("64 requests are waiting."), hub.OverloadedError),
        (GenerationError("the engine failed."), hub.GenerationError),
        (DrainingError("the server is shutting down."), hub.UnknownError),
    ):
        refusing(error)
        for stream in (False, True):
            with pytest.raises(raised, match=str(error)):
                client.text_generation(PROMPT, stream=stream)


# ---------------------------------------------------------------------------------------------------- openai and ollama


def create(server: Any, prompt: Any = PROMPT, **asked: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        asked = {"max_tokens": 5, "model": server.service.model_name} | asked
        made = client.completions.create(prompt=prompt, **asked)
        return list(made) if asked.get("stream") else made


def test_openais_client_gets_one_text_whole_and_streamed(server: Any) -> None:
    whole, chunks = create(server), create(server, stream=True)
    (choice,) = whole.choices
    assert choice.text == "".join(chunk.choices[0].text for chunk in chunks) != ""
    assert whole.object == "text_completion"
    assert whole.model == server.service.model_name
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [choice.finish_reason]
    *_, last = create(server, stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens == whole.usage.completion_tokens == len(choice.exit_layers)
    full = create(server, extra_body={"early_exit": {"strategy": "full"}})
    header = create(server, extra_headers={"X-Early-Exit": "full"})
    assert full.x_early_exit["strategy"] == header.x_early_exit["strategy"] == "full"
    assert create(server).x_early_exit["strategy"] == server.service.settings.default.name
    assert create(server, [1, 2, 3], max_tokens=2).usage.prompt_tokens == 3


def test_openais_client_raises_its_own_errors(server: Any, refusing: Any, changed: Any) -> None:
    for asked, param, named in (
        ({"extra_body": {"early_exit": {"strategy": "no such thing"}}}, None, "no such thing"),
        ({"temperature": 0.7}, "temperature", "0.7"),
        ({"model": "another/model"}, "model", "another/model"),
        ({"logprobs": 5}, "logprobs", "5"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            create(server, **asked)
        said = refused.value.body["message"]
        assert refused.value.body == {"message": said, "type": "invalid_request_error", "param": param, "code": None}
        assert named in said
    changed(fails_at(2))
    with pytest.raises(openai.APIError, match="the engine failed"):
        create(server, stream=True)
    refusing(OverloadedError("64 requests are waiting. Try again later."))
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="64 requests are waiting") as overloaded:
            create(server, stream=stream)
        assert overloaded.value.response.headers["retry-after"] == "1"


def test_openais_client_reads_the_models(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == model.id == server.service.model_name
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.models.retrieve("another/model")


def test_the_ollama_package_reads_it(server: Any) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url)
    options = {"num_predict": 4, "temperature": 0, "early_exit": {"strategy": "full"}}
    model = server.service.model_name
    answer = client.generate(model=model, prompt=PROMPT, options=options)
    assert answer.done
    assert answer.eval_count >= 1
    pieces = list(client.generate(model=model, prompt=PROMPT, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == answer.response
    assert [piece.done for piece in pieces] == [False] * answer.eval_count + [True]
    with pytest.raises(ollama.ResponseError) as refused:
        client.generate(model=model, prompt=PROMPT, options={"early_exit": {"strategy": "nonsense"}})
    assert refused.value.status_code == 400
    assert "nonsense" in refused.value.error


# -------------------------------------------------------------------------------------------------------------- llm-ls


def curl(url: str, body: dict[str, Any] | str, *arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--no-buffer", "--request", "POST", "--url", url]
    command += ["--header", "Content-Type: application/json", *arguments, "--data", "@-"]
    sent = body if isinstance(body, str) else json.dumps(body)
    return subprocess.run(command, input=sent, capture_output=True, text=True, timeout=60, check=True).stdout


SERVED = object()
"""Stands for the name of the model that is served."""

NESTED = {"parameters": {"return_full_text": False, "max_new_tokens": 4, "stop": None, "seed": None, "details": None}}
LLM_LS: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("/models/", {"inputs": PROMPT, **NESTED}, lambda answer: answer[0]["generated_text"]),
    ("/generate", {"inputs": PROMPT, **NESTED}, lambda answer: answer["generated_text"]),
    ("/generate", {"inputs": PROMPT, "parameters": NESTED}, lambda answer: answer["generated_text"]),
    (
        "/api/generate",
        {
            "prompt": PROMPT,
            "model": SERVED,
            "stream": False,
            "options": {"num_predict": 4, "stop": None},
            "suffix": None,
        },
        lambda answer: answer["response"],
    ),
    (
        "/v1/completions",
        {"prompt": PROMPT, "model": SERVED, "stream": False, "max_tokens": 4, "stop": None, "logprobs": None},
        lambda answer: answer["choices"][0]["text"],
    ),
    ("/completion", {"prompt": PROMPT, "n_predict": 4}, lambda answer: answer["content"]),
]
"""What llm-ls sends to each of its backends, as its sources do, and where it looks for the completion."""


def test_llm_ls_finds_its_completion_or_what_is_wrong(server: Any) -> None:
    for path, told, read in LLM_LS:
        body = {name: server.service.model_name if value is SERVED else value for name, value in told.items()}
        completion = read(json.loads(curl(server.url + path, body)))
        assert isinstance(completion, str)
        assert not completion.startswith(PROMPT), "the prompt is not part of the completion"
        if path == "/completion":
            continue  # llama.cpp's own errors it cannot read either
        for wrong in (body | {"early_exit": {"strategy": "nonsense"}}, "{"):
            answer = json.loads(curl(server.url + path, wrong))
            error = answer["detail"][0]["msg"] if path == "/v1/completions" else answer["error"]
            assert error
            assert "\n" not in error


# ------------------------------------------------------------------------------- llama.vim, llama.vscode, and Continue

LLAMA_VIM: dict[str, Any] = {
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
        "content",
        "timings/prompt_n",
        "timings/predicted_n",
        "truncated",
        "tokens_cached",
        "content/x",
    ],
}


def test_llama_vim_completes_where_the_suffix_can_be_read_or_ignored(start: Callable[..., Any]) -> None:
    server = start(suffix="ignore")
    said = curl(f"{server.url}/infill", LLAMA_VIM)
    assert said.startswith('{"content":"'), "llama.vim looks for this text"
    assert "\n" not in said, "Vim's channel hands the answer over by lines"
    answer = json.loads(said)
    assert list(answer) == [*LLAMA_VIM["response_fields"][:-1], "x_early_exit"]
    assert answer["timings/predicted_n"] == len(answer["x_early_exit"]["exit_layers"])
    assert answer["x_early_exit"]["suffix"] == "ignored"
    vscode = {name: value for name, value in LLAMA_VIM.items() if name != "response_fields"}
    read = httpx.post(f"{server.url}/infill", json={**vscode, "id_slot": 0, "lora": None, "nprobs": 0}).json()
    assert isinstance(read["content"], str)
    assert read["timings"]["predicted_n"] == read["tokens_predicted"] <= 6


CONTINUE_STOPS = ["\n\n", "\r\n\r\n", "/src/", "#- coding: utf-8", "```"]
"""Continue adds them to what the template says."""


def test_continue_completes(server: Any) -> None:
    body = {
        "prompt": PROMPT, "model": server.service.model_name, "max_tokens": 6, "temperature": 0, "top_p": None,
        "frequency_penalty": None, "presence_penalty": None, "stop": CONTINUE_STOPS, "stream": True,
        "early_exit": "full",  # as requestOptions.extraBodyProperties add
    }  # fmt: skip
    headers = {"Authorization": "Bearer none", "api-key": "none", "x-api-key": "none"}
    address = httpx.URL(f"{server.url}/v1/").join("completions")
    answer = httpx.post(address, json=body, headers=headers, timeout=60)
    data = [line.removeprefix("data:").strip() for line in answer.text.splitlines() if line.startswith("data:")]
    assert data.pop() == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in data)
    whole = httpx.post(address, json={**body, "stream": False}, timeout=60).json()
    assert text == whole["choices"][0]["text"]
    assert whole["x_early_exit"]["strategy"] == "full"


# ---------------------------------------------------------------------------------------- settings that users paste

NASTY = [
    "org/model-1.5b",
    'it\'s "quoted" \\ back',
    "a: b # c {{{x}}} - [d] caché \x85 \u2028 \ufeff 模型 🦙",
    "line\nbreak\ttab\x00\x1b */ ''' \"\"\" ' . system('x') . '",
]

MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
MARKED: Any = SimpleNamespace(family=SimpleNamespace(texts=MARKERS))
UNMARKED: Any = SimpleNamespace(family=SimpleNamespace(texts=None))
"""How a server reads what is after the cursor: by tokens that can, and cannot, be written as text."""


def written(client: str, *, url: str = "http://127.0.0.1:8080", model: str = "m", fim: Any = None, **given: Any) -> str:
    return snippet(client, ServeConfig.build({"max_new_tokens": 64, **given}), url, model, fim, 700)


def vscode(text: str) -> dict[str, Any]:
    """What VS Code reads: JSON with comments."""
    read: dict[str, Any] = json.loads("\n".join(line for line in text.splitlines() if not line.startswith("//")))
    return read


def the_model(text: str) -> dict[str, Any]:
    """The only model that Continue reads."""
    config = yaml.safe_load(text)
    assert {"name", "version", "schema"} < config.keys()
    (model,) = config["models"]
    assert isinstance(model, dict)
    return model


def vim_config(text: str, folder: Path) -> dict[str, Any]:
    """``g:llama_config`` after Vim has read the snippet."""
    if shutil.which("vim") is None:
        pytest.skip("vim is not installed")
    if "+eval" not in subprocess.run(["vim", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this vim has no expressions")
    (folder / "vimrc").write_text(text, encoding="utf-8")
    dump = "call writefile([json_encode(g:llama_config)], 'config.json')"
    command = ["vim", "-es", "-N", "-u", "NONE", "-i", "NONE", "--cmd", "set encoding=utf-8"]
    command += ["-c", "source vimrc", "-c", dump, "-c", "qa!"]
    subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, timeout=30, check=False)
    read: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return read


@pytest.mark.parametrize("model", NASTY)
def test_names_stay_names(model: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:8080/{model.replace('/', '')}"
    given: dict[str, Any] = {"model": model, "url": url, "fim": MARKED, "api_key_file": "key"}
    assert vscode(written("llm-vscode", **given))["llm.modelId"] == model
    assert vscode(written("llm-vscode", **given))["llm.url"] == f"{url}/generate"
    read = the_model(written("continue", **given))
    assert (read["name"], read["model"], read["apiBase"]) == (model, model, f"{url}/v1/")
    calls = [node for node in ast.walk(ast.parse(written("openai", **given))) if isinstance(node, ast.Call)]
    words = [word for call in calls for word in call.keywords if isinstance(word.value, ast.Constant)]
    arguments = {word.arg: ast.literal_eval(word.value) for word in words}
    assert (arguments["model"], arguments["base_url"]) == (model, f"{url}/v1")
    if "\0" not in url:  # Vim's texts end at a NUL
        assert vim_config(written("llama.vim", **given), tmp_path)["endpoint_fim"] == f"{url}/infill"


def test_markers_are_written_where_a_client_writes_them_itself() -> None:
    for fim in (None, UNMARKED, MARKED):
        read = vscode(written("llm-vscode", fim=fim))
        assert read["llm.fillInTheMiddle.enabled"] is (fim is MARKED)
        texts = tuple(read[f"llm.fillInTheMiddle.{name}"] for name in ("prefix", "suffix", "middle"))
        assert texts == (MARKERS if fim is MARKED else ("", "", ""))
        prefix, suffix, middle = MARKERS
        template = f"{prefix}{{{{{{prefix}}}}}}{suffix}{{{{{{suffix}}}}}}{middle}" if fim is MARKED else "{{{prefix}}}"
        assert the_model(written("continue", fim=fim))["promptTemplates"] == {"autocomplete": template}
    parameters = {"max_new_tokens": 64, "temperature": 0}  # else VS Code adds the extension's own 0.2
    assert (read["llm.contextWindow"], read["llm.requestBody"]) == (700, {"parameters": parameters})
    model = the_model(written("continue"))
    assert model["roles"] == ["autocomplete"]
    assert model["defaultCompletionOptions"] == {"maxTokens": 64, "temperature": 0}  # else Continue sends 0.01
    assert model["useLegacyCompletionsEndpoint"] is True
    # what the last line tells to add is an entry of this model
    for client in clients():
        *_, last = written(client, api_key_file="key").splitlines()
        assert "Early exit per request: " in last
        for more in ({}, {"api_key_file": "key"}):
            text = written(client, **more)
            assert ("YOUR-KEY" in text or "Llm: Login" in text) == bool(more)
    hint = written("continue").splitlines()[-1].partition("in the model, ")[2]
    assert yaml.safe_load(hint) == {"requestOptions": {"extraBodyProperties": {"early_exit": "full"}}}


def test_what_is_pasted_gets_answers(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = vscode(written("llm-vscode", url=server.url, max_new_tokens=3))
    body: dict[str, Any] = {"inputs": "def f(x):\n    ", **read["llm.requestBody"]}
    body["parameters"] = {"temperature": 0.2, "top_p": 0.95} | body["parameters"]  # as VS Code merges them
    assert isinstance(httpx.post(read["llm.url"], json=body, timeout=60).json()["generated_text"], str)
    name = server.service.model_name
    exec(compile(written("openai", url=server.url, model=name, max_new_tokens=3), "snippet", "exec"), {})
    assert capsys.readouterr().out
    assert "--suffix ignore" in written("llama.vim")
    assert "--suffix" not in written("llama.vim", fim=MARKED) + written("llama.vim", suffix="ignore")
    vim = vim_config(written("llama.vim", url=server.url, max_new_tokens=3, api_key_file="key"), tmp_path)
    assert (vim["api_key"], vim["n_predict"]) == ("YOUR-KEY", 3)
    body = {"input_prefix": "", "prompt": "def f(x):\n    ", "input_suffix": "", "n_predict": vim["n_predict"]}
    answer = httpx.post(f"{vim['endpoint_fim']}?early_exit=full", json=body, timeout=60).json()
    assert answer["tokens_predicted"] <= 3
    assert answer["x_early_exit"]["strategy"] == "full"
