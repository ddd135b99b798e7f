"""Snippets are read by what will read them: JSON, YAML, Vim and Python; nothing a user named can break out."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from harness.errors import ConfigError
from harness.serving.client_settings import CLIENTS, KEY, snippet

NASTY = [
    "org/model-1.5b",
    'it\'s "quoted" \\ back',
    "a: b # c {{{x}}} - [d]",
    "line\nbreak\ttab\x00\x1b",
    "caché \x85 \u2028 \ufeff 模型 🦙",
    "*/ ''' \"\"\" ' . system('x') . '",
]

MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

COMMENT = {"llm-vscode": "// ", "continue": "# ", "llama.vim": '" ', "openai": "# "}


def written(client: str, **changes: Any) -> str:
    given: dict[str, Any] = {
        "url": "http://127.0.0.1:8080",
        "model": "smollm2-135m",
        "key": False,
        "max_new_tokens": 64,
        "fim": False,
        **changes,
    }
    return snippet(client, **given)


def settings(text: str) -> dict[str, Any]:
    """What VS Code reads: JSON with comments."""
    lines = [line for line in text.splitlines() if not line.startswith("//")]
    read: dict[str, Any] = json.loads("\n".join(lines))
    return read


def the_model(text: str) -> dict[str, Any]:
    """The only model that Continue reads."""
    config = yaml.safe_load(text)
    assert {"name", "version", "schema"} < config.keys()
    (model,) = config["models"]
    assert isinstance(model, dict)
    return model


def create_arguments(text: str) -> dict[str, Any]:
    """Literal arguments of the calls in a Python snippet."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return {
        word.arg: ast.literal_eval(word.value)
        for call in calls
        for word in call.keywords
        if word.arg is not None and isinstance(word.value, ast.Constant)
    }


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


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("fim", [False, True])
def test_the_last_line_says_how_to_set_early_exit(client: str, key: bool, fim: bool) -> None:
    text = written(client, key=key, fim=fim, markers=MARKERS if fim else None)
    last = text.splitlines()[-1]
    assert last.startswith(f"{COMMENT[client]}Early exit per request: ")
    assert "early_exit" in last
    assert max(map(len, text.splitlines())) <= 120
    assert (KEY in text or "Llm: Login" in text) is key


@pytest.mark.parametrize("model", NASTY)
def test_names_stay_names(model: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:8080/{model.replace('/', '')}"
    given = {"model": model, "url": url, "key": True, "fim": True, "markers": MARKERS}
    assert settings(written("llm-vscode", **given))["llm.modelId"] == model
    assert settings(written("llm-vscode", **given))["llm.url"] == f"{url}/generate"
    read = the_model(written("continue", **given))
    assert (read["name"], read["model"], read["apiBase"]) == (model, model, f"{url}/v1/")
    arguments = create_arguments(written("openai", **given))
    assert (arguments["model"], arguments["base_url"]) == (model, f"{url}/v1")
    if "\0" not in url:  # Vim's texts end at a NUL
        assert vim_config(written("llama.vim", **given), tmp_path)["endpoint_fim"] == f"{url}/infill"


def test_llm_vscode_asks_for_the_middle_only_with_markers() -> None:
    plain = settings(written("llm-vscode"))
    assert plain["llm.fillInTheMiddle.enabled"] is False
    assert settings(written("llm-vscode", fim=True))["llm.fillInTheMiddle.enabled"] is False
    assert settings(written("llm-vscode", fim=False, markers=MARKERS))["llm.fillInTheMiddle.enabled"] is False
    read = settings(written("llm-vscode", fim=True, markers=MARKERS, max_prompt_tokens=700))
    assert read["llm.fillInTheMiddle.enabled"] is True
    assert tuple(read[f"llm.fillInTheMiddle.{name}"] for name in ("prefix", "suffix", "middle")) == MARKERS
    assert read["llm.contextWindow"] == 700
    assert read["llm.requestBody"] == {"parameters": {"max_new_tokens": 64}}


def test_continue_writes_the_prompt_the_model_knows() -> None:
    prefix, suffix, middle = MARKERS
    assert the_model(written("continue"))["promptTemplates"] == {"autocomplete": "{{{prefix}}}"}
    marked = the_model(written("continue", fim=True, markers=MARKERS))
    expected = f"{prefix}{{{{{{prefix}}}}}}{suffix}{{{{{{suffix}}}}}}{middle}"
    assert marked["promptTemplates"] == {"autocomplete": expected}
    assert marked["roles"] == ["autocomplete"]
    assert marked["defaultCompletionOptions"]["maxTokens"] == 64
    assert marked["useLegacyCompletionsEndpoint"] is True
    # what the last line tells to add is an entry of this model
    hint = written("continue").splitlines()[-1].partition("in the model, ")[2]
    assert yaml.safe_load(hint) == {"requestOptions": {"extraBodyProperties": {"early_exit": "full"}}}


def test_vim_reads_old_and_new_names(tmp_path: Path) -> None:
    text = written("llama.vim", key=True)
    new = vim_config(text, tmp_path)
    assert new["endpoint_fim"] == "http://127.0.0.1:8080/infill"
    assert new["api_key"] == KEY
    assert new["n_predict"] == 64
    assert "endpoint" not in new, "a new llama.vim would warn of it at every start"
    old = vim_config(text.replace('" let', "let"), tmp_path)
    assert old["endpoint"] == old["endpoint_fim"]
    assert "--suffix ignore" in text
    assert "--suffix" not in written("llama.vim", fim=True)


def test_an_unknown_client_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown client 'llama-vim'\. Did you mean 'llama\.vim'\?"):
        written("llama-vim")


def served(server: Any, path: str) -> None:
    if path not in httpx.get(f"{server.url}/openapi.json").json()["paths"]:
        pytest.skip(f"{path} is not served yet")


def test_llm_vscode_gets_an_answer(server: Any) -> None:
    served(server, "/generate")
    read = settings(written("llm-vscode", url=server.url, max_new_tokens=3))
    body = {"inputs": "def f(x):\n    ", **read["llm.requestBody"]}
    body["parameters"] |= {"return_full_text": False, "early_exit": {"strategy": "full"}}
    answer = httpx.post(read["llm.url"], json=body, timeout=60)
    assert isinstance(answer.json()["generated_text"], str)


def test_llama_vim_gets_an_answer(server: Any, tmp_path: Path) -> None:
    read = vim_config(written("llama.vim", url=server.url, max_new_tokens=3), tmp_path)
    body = {"input_prefix": "", "prompt": "def f(x):\n    ", "input_suffix": "", "n_predict": read["n_predict"]}
    answer = httpx.post(f"{read['endpoint_fim']}?early_exit=full", json=body, timeout=60).json()
    assert isinstance(answer["content"], str)
    assert answer["tokens_predicted"] <= 3
    assert answer["x_early_exit"]["strategy"] == "full"


def test_the_python_snippet_runs(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    served(server, "/v1/completions")
    pytest.importorskip("openai")
    text = written("openai", url=server.url, model=server.service.model_name, max_new_tokens=3)
    exec(compile(text, "snippet", "exec"), {})
    assert capsys.readouterr().out
