"""Settings to paste into an editor or a program, so that it completes with this server.

Written for today's releases of the clients. Names, models and addresses are quoted for the language they stand in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from harness.appearance.visible_text import is_hidden
from harness.errors import ConfigError, did_you_mean

CLIENTS: Mapping[str, str] = MappingProxyType(
    {
        "llm-vscode": "llm-vscode (settings.json)",
        "continue": "Continue (config.yaml)",
        "llama.vim": "llama.vim (vimrc)",
        "openai": "OpenAI for Python",
    }
)
"""Client → title, with the place where its settings belong."""

EDITOR_TOKENS = 64
"""Limit that an editor asks for: more than a line or two is seldom accepted, and delays what is."""

KEY = "YOUR-KEY"
"""Stands where the user's key belongs."""


@dataclass(frozen=True, slots=True)
class _Server:
    url: str
    model: str
    key: bool
    max_new_tokens: int
    fim: bool
    markers: tuple[str, str, str] | None
    max_prompt_tokens: int
    ignored: bool


def snippet(
    client: str,
    *,
    url: str,
    model: str,
    key: bool,
    max_new_tokens: int,
    fim: bool,
    markers: tuple[str, str, str] | None = None,
    max_prompt_tokens: int = 2048,
    ignored: bool = False,
) -> str:
    """Return what a user of a client pastes; its last line says how a request sets early exit.

    Args:
        client: one of :data:`CLIENTS`.
        url: address of the server, as ``http://127.0.0.1:8080``.
        model: the model's id, as the server names it.
        key: whether the server asks for a key; the snippet then has a place for it.
        max_new_tokens: limit of a completion, tokens; editors ask for :data:`EDITOR_TOKENS` at most.
        fim: whether the server can read text after the cursor.
        markers: prefix, suffix and middle marker as text, for clients that write them into the prompt themselves; see
            :attr:`harness.models.fill_in_the_middle.Family.texts`. Without them such a client sends only what is
            before the cursor.
        max_prompt_tokens: limit of a prompt, tokens.
        ignored: whether the server drops text after the cursor that it cannot read.

    Raises:
        ConfigError: no such client.
    """
    if client not in _WRITERS:
        raise ConfigError(f"unknown client '{client}'.{did_you_mean(client, CLIENTS)} Known: {', '.join(CLIENTS)}.")
    # a script gets the limit it asks for
    limit = max_new_tokens if client == "openai" else min(max_new_tokens, EDITOR_TOKENS)
    server = _Server(url.rstrip("/"), model, key, limit, fim, markers if fim else None, max_prompt_tokens, ignored)
    return _WRITERS[client](server)


def _llm_vscode(server: _Server) -> str:
    prefix, suffix, middle = server.markers or ("", "", "")
    settings = {
        "llm.backend": "tgi",
        "llm.url": f"{server.url}/generate",
        "llm.disableUrlPathCompletion": True,  # the address is complete
        "llm.modelId": server.model,
        "llm.configTemplate": "Custom",
        "llm.requestBody": {"parameters": {"max_new_tokens": server.max_new_tokens}},
        "llm.fillInTheMiddle.enabled": server.markers is not None,
        "llm.fillInTheMiddle.prefix": prefix,
        "llm.fillInTheMiddle.suffix": suffix,
        "llm.fillInTheMiddle.middle": middle,
        "llm.tokenizer": None,  # characters are counted, of which a token has at least one
        "llm.contextWindow": server.max_prompt_tokens,
        "llm.tokensToClear": [],
    }
    lines = [f"    {_quoted(name)}: {_json(value)}" for name, value in settings.items()]
    key = ["// Key: run the command “Llm: Login” and paste it."] if server.key else []
    return "\n".join(
        [
            "{",
            ",\n".join(lines),
            "}",
            *key,
            '// Early exit per request: "early_exit": {"strategy": "full"} inside "parameters" of "llm.requestBody".',
        ]
    )


def _continue(server: _Server) -> str:
    prefix, suffix, middle = server.markers or ("", "", "")
    template = f"{prefix}{{{{{{prefix}}}}}}{suffix}{{{{{{suffix}}}}}}{middle}" if server.markers else "{{{prefix}}}"
    return "\n".join(
        [
            "name: Early exit",
            "version: 0.0.1",
            "schema: v1",
            "models:",
            f"  - name: {_quoted(server.model)}",
            "    provider: openai",
            f"    model: {_quoted(server.model)}",
            f"    apiBase: {_quoted(server.url + '/v1/')}",
            f"    apiKey: {KEY if server.key else 'none'}",
            "    roles: [autocomplete]",
            "    useLegacyCompletionsEndpoint: true",
            "    defaultCompletionOptions:",
            f"      maxTokens: {server.max_new_tokens}",
            "    autocompleteOptions:",
            f"      maxPromptTokens: {max(server.max_prompt_tokens // 2, 1)}",
            "    promptTemplates:",
            f"      autocomplete: {_quoted(template)}",
            "# Early exit per request: in the model, requestOptions: {extraBodyProperties: {early_exit: full}}",
        ]
    )


def _llama_vim(server: _Server) -> str:
    without = ['" The model cannot read what is after the cursor: start the server with --suffix ignore.']
    return "\n".join(
        [
            *([] if server.fim or server.ignored else without),
            "let g:llama_config = {",
            f"    \\ 'endpoint_fim': {_quoted(server.url + '/infill')},",
            *([f"    \\ 'api_key': {_quoted(KEY)},"] if server.key else []),
            f"    \\ 'n_predict': {server.max_new_tokens},",
            "    \\ 'ring_n_chunks': 0,",
            "    \\ }",
            '" Only for a llama.vim that is older than endpoint_fim:',
            '" let g:llama_config.endpoint = g:llama_config.endpoint_fim',
            '" Early exit per request: append ?early_exit=full to the endpoint, or ?early_exit=NAME:option=value.',
        ]
    )


def _openai(server: _Server) -> str:
    key = KEY if server.key else "none"
    return "\n".join(
        [
            "from openai import OpenAI",
            "",
            "# or: export the two as OPENAI_BASE_URL and OPENAI_API_KEY, and write OpenAI()",
            f"client = OpenAI(base_url={_quoted(server.url + '/v1')}, api_key={_quoted(key)})",
            "completion = client.completions.create(",
            f"    model={_quoted(server.model)},",
            '    prompt="def fibonacci(n):\\n    ",',
            *(['    suffix="\\n\\nprint(fibonacci(10))\\n",'] if server.fim else []),
            f"    max_tokens={server.max_new_tokens},",
            ")",
            "print(completion.choices[0].text)",
            '# Early exit per request: extra_body={"early_exit": {"strategy": "full"}} as an argument of create().',
        ]
    )


_WRITERS: Mapping[str, Callable[[_Server], str]] = {
    "llm-vscode": _llm_vscode,
    "continue": _continue,
    "llama.vim": _llama_vim,
    "openai": _openai,
}


def _json(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """Return a text in double quotes as JSON, YAML, Vim and Python read it."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(f"\\u{ord(one):04x}" if is_hidden(one) and one <= "\uffff" else one for one in quoted)
