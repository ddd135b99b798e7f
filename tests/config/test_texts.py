"""A configuration holds only texts that a file and the file system take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.errors import ConfigError
from harness.replay.options import SweepOptions
from harness.serving.config import ServeConfig

NUL, BYTES, DEEP = "a\0b", "caf\udce9", "d/" * 1200 + "x"


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (RunConfig, {"out": Path(NUL)}),
        (RunConfig, {"out": Path(BYTES)}),
        (RunConfig, {"out": BYTES}),
        (RunConfig, {"model": NUL}),
        (RunConfig, {"artefacts": NUL}),
        (RunConfig, {"source": BYTES}),
        (RunConfig, {"tasks": ("py150", NUL)}),
        (RunConfig, {"strategies": ["full", f"rl:agent={NUL}"]}),
        (RunConfig, {"energy": f"replay:{NUL}"}),
        (ServeConfig, {"api_key_file": Path(NUL)}),
        (ServeConfig, {"host": NUL}),
        (SweepOptions, {"replay": Path(NUL), "strategies": ("full",)}),
        (RunConfig, {"out": DEEP}),
        (SweepOptions, {"out": Path(DEEP), "replay": Path("."), "strategies": ("full",)}),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(model: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"NUL character|not valid UTF-8|Give a shorter path") as refused:
        model.build(values)
    assert str(refused.value).startswith(f"{next(iter(values))} = ")
    assert len(str(refused.value).splitlines()) == 1


def test_anything_else_is_taken() -> None:
    assert RunConfig(out=Path("café 中"), model="x/y").out == Path("café 中")
