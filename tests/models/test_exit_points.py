"""GREEN-CODE's exit points (section III-D), and the ones a user writes."""

from __future__ import annotations

import itertools

import pytest

from harness.errors import ConfigError
from harness.models.facts import exit_points, parse_exit_points


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (28, (4, 6, 8, 10, 12, 14, 18, 22, 26)),
        (32, (4, 6, 8, 10, 12, 14, 16, 20, 24, 28)),
        (30, (4, 6, 8, 10, 12, 14, 18, 22, 26)),
        (24, (4, 6, 8, 10, 12, 16, 20)),
        (16, (4, 6, 8, 12)),
        (12, (4, 6, 10)),
    ],
)
def test_the_paper_s_rule(num_layers: int, expected: tuple[int, ...]) -> None:
    assert exit_points(num_layers) == expected
    assert parse_exit_points("paper", num_layers) == expected


@pytest.mark.parametrize("num_layers", range(1, 81))
def test_the_last_layer_is_never_an_exit_point(num_layers: int) -> None:
    points = exit_points(num_layers)
    assert all(4 <= point < num_layers for point in points)
    assert list(points) == sorted(set(points))
    steps = [(a, b - a) for a, b in itertools.pairwise(points)]
    assert all(step == (2 if a + 2 <= num_layers // 2 else 4) for a, step in steps)


def test_all_layers() -> None:
    assert parse_exit_points("all", 5) == (1, 2, 3, 4)
    assert parse_exit_points("all", 1) == ()


@pytest.mark.parametrize(("text", "expected"), [("7", (7,)), ("8,2,5", (2, 5, 8)), ("3,3", (3,)), (" 1, 27", (1, 27))])
def test_a_list_of_layers(text: str, expected: tuple[int, ...]) -> None:
    assert parse_exit_points(text, 28) == expected


@pytest.mark.parametrize("text", ["", "4,", "four", "4.5", "4;8", "Paper"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read\. Write 'paper', 'all', or layers such as 4,8,12"):
        parse_exit_points(text, 28)


@pytest.mark.parametrize("text", ["0", "28", "4,29", "-1,4"])
def test_layers_beyond_the_model_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"layers run from 1 to 27 \(the model has 28"):
        parse_exit_points(text, 28)
