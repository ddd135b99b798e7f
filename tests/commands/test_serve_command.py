"""``harness serve``: what it refuses before anything listens, and what it prints instead of listening."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.commands.use import EXTRA
from harness.serving.config import ServeConfig
from harness.serving.page import snippet


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeConfig]:
    """What would have been served."""
    import harness.serving.server

    configs: list[ServeConfig] = []
    monkeypatch.setattr(harness.serving.server, "serve", lambda config: configs.append(config) or True)
    return configs


def test_flags_win_over_the_file_and_the_file_over_defaults(
    cli: Callable[..., Any], served: list[ServeConfig], tmp_path: Path
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'port = 9000\nmax_queue = 3\nstrategies = ["fixed:layer=4"]\ncors_origins = ["https://a.example"]\n'
    )
    done = cli("serve", "--config", file, "--port", 9001, "--insecure", "--kv", "recompute")
    assert (done.code, done.out) == (0, "")
    (config,) = served
    assert (config.port, config.max_queue, config.strategies) == (9001, 3, ("fixed:layer=4",))
    assert config.insecure
    assert config == ServeConfig(
        port=9001, max_queue=3, strategies=("fixed:layer=4",), cors_origins=("https://a.example",), insecure=True,
        kv="recompute",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", 70000], "--port 70000"),
        (["--max-new-tokens", 0], "--max-new-tokens 0"),
        (["--suffix", "maybe"], "--suffix 'maybe'"),
        (["--kv", "telepathy"], "--kv 'telepathy'"),
        (["--drain-s", "nan"], "--drain-s"),
        (["--config", "nowhere.toml"], "cannot read nowhere.toml"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "no-such-host.invalid"], "cannot listen at no-such-host.invalid"),
        (["--api-key-file", "nowhere"], "cannot read --api-key-file nowhere"),
        (["--cors-origin", "*"], "every web page"),
        (["--cors-origin", "ide.example"], "no web origin"),
        (["--print-config", "openai", "--port", 0], "fixed one"),
        (["--print-config", "llama-vim"], "Did you mean 'llama.vim'?"),
    ],
)
def test_bad_input_is_refused_in_one_line(cli: Callable[..., Any], arguments: list[Any], said: str) -> None:
    assert said in cli("serve", *arguments).error


def test_without_the_extra_it_names_the_command_that_installs_it(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name in EXTRA else real(name, *more))
    assert "pip install 'early-exit-harness[serve]'" in cli("serve").error


@pytest.mark.parametrize("client", ["llm-vscode", "openai"])
def test_settings_of_a_client_are_printed_and_nothing_is_started(
    cli: Callable[..., Any], served: list[ServeConfig], tmp_path: Path, tiny_llama: Path, client: str
) -> None:
    arguments = ("--host", "0.0.0.0", "--port", 9000, "--model", tiny_llama, "--api-key-file", tmp_path / "not-read")
    limits = ("--max-new-tokens", 77, "--max-prompt-tokens", 55)
    done = cli("serve", "--print-config", client, *arguments, *limits)
    assert done.code == 0
    assert done.err == "On another machine, write this machine's address for 127.0.0.1.\n"
    config = ServeConfig(max_new_tokens=77, api_key_file=tmp_path / "not-read")
    assert done.out == snippet(client, config, "http://127.0.0.1:9000", tiny_llama.name, None, 55) + "\n"
    assert not served
