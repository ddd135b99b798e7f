"""Which exit module reads a model's exits, what it costs, and the artefact that holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from harness.contracts import ExitModule, HeadChoice, WeightsFormat
from harness.errors import ArtefactError, OptionError, UnknownNameError
from harness.models.artefacts import Artefact, fault_of
from harness.registry import EXIT_MODULES

if TYPE_CHECKING:
    from torch import Tensor

LINEAR = "linear"
"""The exit module of an artefact that names none."""


def _known(text: str) -> str:
    name = HeadChoice.of(text).name
    if name not in EXIT_MODULES:
        raise UnknownNameError("exit module", name, EXIT_MODULES.names())
    return text


ExitModuleName = Annotated[str, AfterValidator(_known)]
"""An option that names an exit module: ``NAME`` or ``NAME/SIZE``."""


def chosen(text: str) -> tuple[type[ExitModule], int | None]:
    """Return an exit module by ``NAME`` or ``NAME/SIZE``, and its size; ``None`` where it has none."""
    try:
        choice = HeadChoice.of(text)
    except ValueError as error:
        raise OptionError(f"the exit module '{text}' is not allowed: {error}.") from None
    kind: type[ExitModule] = EXIT_MODULES.load(choice.name)
    if choice.size is not None and not kind.facts.sizes:
        raise OptionError(f"the exit module {choice.name} has no size. Give {choice.name} alone.")
    return kind, choice.size or kind.facts.default_size


def module_of(shortcut: Artefact) -> str:
    """Return which exit module an artefact holds."""
    return str(shortcut.facts.get("exit_module", LINEAR))


def shapes_of(text: str, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of one exit's module, by name."""
    kind, size = chosen(text)
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, (out, width) in kind.shapes(hidden_size, size).items():
        shapes |= {f"{prefix}weight": (out, width), f"{prefix}bias": (out,)}
    return shapes


def shortcut_bytes(text: str, hidden_size: int, dtype: str, made: type[WeightsFormat]) -> int:
    """Return the weight bytes that one exit's module reads: matrices in a weights format, biases in a dtype."""
    shapes = shapes_of(text, hidden_size).values()
    matrices, biases = (sum(math.prod(shape) for shape in shapes if len(shape) == axes) for axes in (2, 1))
    return int(matrices * made().head.facts.bits / 8) + biases * element_size(dtype)


def element_size(dtype: str) -> int:
    """Return the bytes of one element of a torch dtype."""
    import torch

    return torch.tensor([], dtype=getattr(torch, dtype)).element_size()


def module_from(text: str, tensors: Mapping[str, Tensor]) -> ExitModule:
    """Return the module of one exit with these tensors, which it shares."""
    from harness.decoding.blocks import Linear

    prefixes = [name.removesuffix("weight") for name in tensors if name.endswith("weight")]
    kind, _ = chosen(text)
    return kind({prefix: Linear(tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]) for prefix in prefixes})


def read_tensors(shortcut: Artefact, exit_points: Sequence[int], hidden_size: int) -> dict[int, dict[str, Tensor]]:
    """Return exit layer → the tensors of its module, as they lie in the artefact; refuses those of other shapes."""
    shapes = shapes_of(module_of(shortcut), hidden_size)
    read = shortcut.tensors(shapes={f"{layer}.{name}": shapes[name] for layer in exit_points for name in shapes})
    return {layer: {name: read[f"{layer}.{name}"] for name in shapes} for layer in exit_points}


def read_shortcuts(
    shortcut: Artefact, exit_points: Sequence[int], dtype: Any, device: str, *, hidden_size: int
) -> dict[int, ExitModule]:
    """Return exit layer → its module, in the model's dtype."""
    found: dict[int, ExitModule] = {}
    for layer, tensors in read_tensors(shortcut, exit_points, hidden_size).items():
        own = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        for name, tensor in own.items():
            if fault := fault_of(tensor):
                raise ArtefactError(f"{shortcut.path}: {layer}.{name} {fault} in {tensor.dtype}. Use another --dtype.")
        found[layer] = module_from(module_of(shortcut), own)
    return found
