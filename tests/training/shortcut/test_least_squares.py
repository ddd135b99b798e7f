"""Closed-form maps from exits to the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.training.corpus import Stream
from harness.training.lite.fit import initial_shortcuts
from harness.training.shortcut import ShortcutMoments

WIDTH = 6


def exact(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, the map that was applied to them, and where it leads."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, WIDTH, generator=generator)
    weight, bias = torch.randn(WIDTH, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    return states, weight, bias, states @ weight.t() + bias


def moments_of(states: Tensor, last: Tensor) -> ShortcutMoments:
    moments = ShortcutMoments([4], WIDTH)
    moments.add({4: states}, last)
    return moments


def solved(*batches: tuple[Tensor, Tensor], ridge: float = 1e-9) -> tuple[Tensor, Tensor]:
    moments = ShortcutMoments([4], WIDTH)
    for states, last in batches:
        moments.add({4: states}, last)
    return moments.solve(ridge=ridge)[4]


def test_an_exact_linear_map_is_found() -> None:
    states, weight, bias, last = exact(200)
    got_weight, got_bias = solved((states, last))
    torch.testing.assert_close(got_weight, weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got_bias, bias, rtol=1e-3, atol=1e-3)
    assert got_weight.dtype == got_bias.dtype == torch.float32


def test_the_default_ridge_changes_next_to_nothing() -> None:
    states, _, _, last = exact(200)
    weight, bias = moments_of(states, last).solve()[4]
    error = (states @ weight.t() + bias - last).pow(2).mean() / last.pow(2).mean()
    assert error < 1e-5


def test_more_directions_than_tokens_still_has_a_solution() -> None:
    states, _, _, last = exact(3)
    weight, bias = moments_of(states, last).solve()[4]
    assert torch.isfinite(weight).all()
    torch.testing.assert_close(states @ weight.t() + bias, last, rtol=0.05, atol=0.05)


def test_streaming_is_one_batch() -> None:
    states, _, _, last = exact(300)
    last = last + torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(3))
    whole = solved((states, last))
    parts = solved(*zip(states.split(37), last.split(37), strict=True))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    moments = ShortcutMoments([4], WIDTH)
    for a, b in zip(states.split(37), last.split(37), strict=True):
        moments.add({4: a}, b)
    assert moments.tokens == 300


def test_the_fit_minimises_the_error_relative_to_the_last_state() -> None:
    """The weighted normal equations, solved by torch's own least squares on rows divided by their size."""
    states, _, _, last = exact(300, seed=1)
    last = (last + torch.randn(300, WIDTH)) * torch.rand(300, 1).mul(4).exp()
    size = last.pow(2).mean(-1, keepdim=True).sqrt()
    rows = torch.cat((states, torch.ones(300, 1)), dim=1) / size
    expected = torch.linalg.lstsq(rows.double(), (last / size).double()).solution.float()
    weight, bias = solved((states, last))
    torch.testing.assert_close(weight, expected[:-1].t(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(bias, expected[-1], rtol=1e-2, atol=1e-2)


def test_one_huge_row_does_not_decide_the_fit() -> None:
    states, weight, bias, last = exact(300, seed=2)
    huge = (torch.ones(1, WIDTH), torch.full((1, WIDTH), 1e4))  # as the first token of a sequence has it
    got_weight, got_bias = solved((states, last), huge)
    torch.testing.assert_close(got_weight, weight, rtol=0.05, atol=0.05)
    torch.testing.assert_close(got_bias, bias, rtol=0.05, atol=0.05)
    plain = torch.linalg.lstsq(
        torch.cat((torch.cat((states, torch.ones(300, 1)), 1), torch.ones(1, WIDTH + 1))), torch.cat((last, huge[1]))
    ).solution
    assert (plain[:-1].t() - weight).abs().max() > 10  # without the weighting it would


def test_exits_are_fitted_apart() -> None:
    states, weight, bias, last = exact(200)
    moments = ShortcutMoments([2, 4], WIDTH)
    moments.add({2: states, 4: last}, last)
    maps = moments.solve(ridge=1e-9)
    torch.testing.assert_close(maps[2][0], weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps[4][0], torch.eye(WIDTH), rtol=1e-3, atol=1e-3)
    assert maps[4][1].abs().max() < 1e-3
    assert bias.abs().max() > 0.1


def test_a_model_s_maps_lead_to_its_last_layer(
    family: str, make_module: Callable[..., Any], naive_states: Callable[..., list[Tensor]]
) -> None:
    """From the exit's state to the state that the final norm reads, not to the norm's output."""
    module = make_module(family).eval()
    sequences = torch.randint(0, 97, (120, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    stream = Stream("made up", None, sequences, sequences[:1], (), ())  # type: ignore[arg-type]
    maps = initial_shortcuts(module, (2, 5), [stream])
    with torch.no_grad():
        states = [state.flatten(0, 1) for state in naive_states(module, sequences.long())]
    last = states[-1]
    size = last.pow(2).mean(-1, keepdim=True).sqrt()
    for layer, (weight, bias) in maps.items():
        state = states[layer - 1]
        rows = torch.cat((state, torch.ones(len(state), 1)), 1)
        best = rows @ torch.linalg.lstsq(rows / size, last / size).solution
        error = ((state @ weight.t() + bias - last) / size).pow(2).mean()
        assert error < 1.02 * ((best - last) / size).pow(2).mean()
        assert error < 0.9 * ((state - last) / size).pow(2).mean()
