"""Without lm-eval: one line with the cure, from the command and from Python."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness.errors import ConfigError

CURE = "pip install 'early-exit-harness[lm-eval]'"


def test_its_absence_is_one_line_with_the_cure(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ran = cli("lm-eval", "--tasks", "gsm8k")
    assert ran.error.splitlines()[0] == "error: lm-eval's tasks need lm-eval, which is not installed:"
    assert ran.commands == [CURE]
    import harness.lm_eval as room

    with pytest.raises(ConfigError, match="need lm-eval, which is not installed"):
        _ = room.EarlyExitLM
    assert cli("lm-eval", "--help").code == 0
