"""Colours of depth: readable, and in order also without colour."""

from __future__ import annotations

from itertools import pairwise

import pytest

from harness.appearance.pages import contrast, depth_colour, depth_shade


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("layers", [2, 12, 30, 80])
def test_every_token_can_be_read(layers: int) -> None:
    for layer in range(1, layers + 1):
        ground, ink = depth_shade(layer, layers)
        assert contrast(ground, ink) >= 4.5


def test_deeper_is_darker() -> None:
    lightness = [contrast(depth_colour(step / 100), "#000000") for step in range(101)]
    assert all(one > other for one, other in pairwise(lightness))
    assert depth_colour(0) == depth_colour(-1) == "#fde725"
    assert depth_colour(1) == depth_colour(2) == "#440154"


def test_it_is_viridis() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    for step in range(0, 101, 5):
        theirs = matplotlib.colormaps["viridis"](1 - step / 100)[:3]
        ours = [int(depth_colour(step / 100)[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert ours == pytest.approx(theirs, abs=0.025)
