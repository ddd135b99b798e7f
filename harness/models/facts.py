"""A model's facts without its weights: sizes in bytes, exit points, what identifies it, and what an export says of it.

``early_exit.json`` beside exported weights says what they were before they were merged, so that what was trained for
those belongs to the folder too. It speaks for the weights it was written with and for no others.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.contracts import OWN_FORMAT, ModelInfo, ModelRequest, Weights, WeightsFormat
from harness.errors import ConfigError, ModelError
from harness.host.files import refusing
from harness.host.libraries import library_border
from harness.models.configuration import Shape
from harness.models.exit_modules import element_size, shortcut_bytes
from harness.models.folder import read_object
from harness.models.source import ModelSpec, fingerprint
from harness.models.trained import artefact_folders
from harness.registry import WEIGHTS_FORMATS

FILE = "early_exit.json"
FORMAT: Literal[2] = 2
PARTS = "early_exit"
"""Folder inside, with the artefacts that belong to the weights."""
MERGED = "merged"
"""Kind and file of what is left of an adapter there: its facts, and with them the documents that it has read."""


class Exported(BaseModel):
    """The content of the file.

    Attributes:
        format: of the file.
        base_model: catalogue name, hub id or folder name of what was exported.
        published: hub id of its base weights, as model cards name it; the name where there is none.
        base_fingerprint: of its base weights.
        fingerprint: of the weights as they were exported; what trained artefacts are checked against.
        files: fingerprint of the folder: weights, configuration, tokenizer and end tokens.
        weights: ``tuned`` with an adapter merged into them, or ``pretrained``.
        adapter_sha256: of that adapter.
        exit_points: layers.
        exit_head: ``shared``, or ``shortcut:`` and a hash.
        num_layers, dtype: of the weights.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    format: Literal[2]
    base_model: str = Field(min_length=1, max_length=200)
    published: str = Field(max_length=200)
    base_fingerprint: str = Field(pattern="^[0-9a-f]{16}$")
    fingerprint: str = Field(pattern="^[0-9a-f]{16}$")
    files: str = Field(pattern="^[0-9a-f]{16}$")
    weights: Literal["pretrained", "tuned"]
    adapter_sha256: str | None = Field(pattern="^[0-9a-f]{64}$")
    exit_points: list[int] = Field(max_length=1000)
    exit_head: str
    num_layers: int = Field(ge=1, le=1000)
    dtype: str

    @property
    def made_of(self) -> str:
        """The exported model, in words."""
        tuned = f" with the LITE adapter {self.adapter_sha256[:12]} merged" if self.adapter_sha256 else ""
        return f"exported from {self.base_model}{tuned}"


def read_exported(spec: ModelSpec, request: ModelRequest) -> Exported | None:
    """Return what a model's folder says of where its weights come from; ``None`` where no export wrote it."""
    file = Path(spec.location) / FILE
    if request.weights == "random" or not spec.location or not os.path.lexists(file):
        return None
    with refusing(file, ModelError, "Export the model again."):
        found = Exported.model_validate(read_object(file))
    if found.weights == "tuned" and request.weights == "pretrained":
        raise ConfigError(
            f"--weights pretrained: {spec.name} holds tuned weights, {found.made_of}. Its base weights are those of "
            f"--model {found.base_model}."
        )
    return found


def base_facts(spec: ModelSpec, shape: Shape, request: ModelRequest, exported: Exported | None = None) -> ModelInfo:
    """Return the facts of the base weights with the shared exit head; of those in the folder, where they are tuned."""
    given = request.exit_points
    if exported is not None and given == "paper":
        given = ",".join(map(str, exported.exit_points)) or given
    points = parse_exit_points(given, shape.num_layers)
    asked = replace(request, exit_points="paper" if points == exit_points(shape.num_layers) else given)
    asked_format = request.weights_format
    name = OWN_FORMAT[request.dtype] if asked_format in (None, "auto") else asked_format
    sizes = _sizes(shape, request.dtype, WEIGHTS_FORMATS.load(name))
    with library_border(f"the weights of {spec.name} cannot be read"):
        base = fingerprint(spec, shape.chosen, request)
    folders = artefact_folders(spec.name, request.artefacts)
    own = Path(spec.location) / PARTS  # of an export, or of weights that were tuned as a whole
    weights: Weights = "random" if request.weights == "random" else "pretrained"
    whole = base
    if exported is not None:
        if exported.weights == "tuned" and not (provenance := own / f"{MERGED}.json").is_file():
            raise ModelError(
                f"{provenance} is missing, which says what the tuned weights beside it have read: no sample could be "
                "trusted to be new to them. Copy the exported folder whole."
            )
        if base != exported.files:
            raise ModelError(
                f"{Path(spec.location) / FILE} was written with other files ({exported.files}) than lie beside it "
                f"({base}): weights, config.json, tokenizer or end tokens. Export the model again, or remove that "
                "file: they are base weights of their own then."
            )
        weights, base, whole = exported.weights, exported.base_fingerprint, exported.fingerprint
    if spec.location and own.is_dir():
        folders = (*folders, own)
    return ModelInfo(
        name=spec.name,
        family=shape.family,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        exit_points=points,
        max_positions=shape.max_positions,
        dtype=request.dtype,
        weights=weights,
        fingerprint=whole,
        base_fingerprint=base,
        artefacts=tuple(map(str, folders)),
        asked=asked,
        weights_format=name,
        **sizes,
    )


def in_format(info: ModelInfo, shape: Shape, name: str) -> ModelInfo:
    """Return a model's facts with its matrices in a weights format."""
    made: type[WeightsFormat] = WEIGHTS_FORMATS.load(name)
    shortcut = shortcut_bytes(info.exit_module, info.hidden_size, info.dtype, made) if info.exit_module else 0
    return replace(info, weights_format=name, shortcut_bytes=shortcut, **_sizes(shape, info.dtype, made))


def _sizes(shape: Shape, dtype: str, made: type[WeightsFormat]) -> dict[str, Any]:
    """Bytes that a decoded token reads: matrices by their format."""
    width, bits, head_bits = element_size(dtype), made.facts.bits, made().head.facts.bits
    return {
        "layer_bytes": int(shape.matrices * bits / 8) + shape.vectors * width,
        "lm_head_bytes": int(shape.head * head_bits / 8),
        "kv_projection_bytes": int(shape.hidden_size * shape.kv_width * bits / 8) + shape.hidden_size * width,
        "kv_entry_bytes": shape.kv_width * width,
    }


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
    """Read ``--exit-points``: ``paper``, ``all``, or a comma list of layers."""
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
