"""Figures become files: three formats, the same bytes every time, replaced whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.registry import STRATEGIES
from reports.figures.drawing import Figure, look_of, save_figures


def line(label: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4, 3))
    axes = canvas.subplots()
    axes.plot([0, 1], [0, 1], label=label)
    axes.legend()
    return canvas


def test_three_formats_of_the_same_bytes_every_time(tmp_path: Path) -> None:
    figure = Figure("a-line", "A line", "Made up.", lambda _: line("rl"))
    first = {path.name: path.read_bytes() for path in save_figures([figure], tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in save_figures([figure], tmp_path / "b")}
    assert sorted(first) == ["a-line.pdf", "a-line.png", "a-line.svg"]
    assert first == again
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(first)
    assert first["a-line.svg"].startswith(b"<?xml")
    assert first["a-line.pdf"].startswith(b"%PDF")


def test_a_name_is_never_a_formula(tmp_path: Path) -> None:
    assert len(save_figures([Figure("odd", "Odd", "Made up.", lambda _: line("$\\frac$ <b>"))], tmp_path)) == 3


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Use another --out"):
        save_figures([], tmp_path / "file" / "x")


def test_strategies_that_ship_look_different_and_unknown_ones_always_the_same() -> None:
    shipped = [look_of(entry.name) for entry in STRATEGIES.entries() if not entry.is_plugin]
    assert len(set(shipped)) == len(shipped)
    assert look_of("norm-growth") == look_of("norm-growth")


def test_a_plug_in_never_looks_like_a_strategy_that_ships() -> None:
    shipped = {look_of(entry.name) for entry in STRATEGIES.entries() if not entry.is_plugin}
    looks = {look_of(f"plug-in-{number}") for number in range(2000)}
    assert not looks & shipped
    assert len(looks) > 40


def test_a_figure_that_cannot_be_put_in_place_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "a-line.svg").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*a-line\.svg"):
        save_figures([Figure("a-line", "A line", "Made up.", lambda _: line("rl"))], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a-line.svg"]
