"""Folders that ``harness export`` wrote: plain transformers weights, and beside them what they were made of.

``early_exit.json`` says which weights these are by what they were before they were merged, so that everything that was
trained for those belongs to the folder too, and what it has read stays known. It speaks for the weights it was written
with and for no others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.contracts import ModelRequest, Weights
from harness.errors import ConfigError, ModelError, complaint
from harness.models.folder import read_object
from harness.models.source import ModelSpec

__all__ = ["FILE", "FORMAT", "MERGED", "PARTS", "Exported", "exported_weights", "read_exported"]

FILE = "early_exit.json"
FORMAT: Literal[2] = 2
PARTS = "early_exit"
"""Folder inside, with the artefacts that belong to the weights."""
MERGED = "merged"
"""Kind and file of what is left of an adapter there: its facts, and with them the documents that it has read."""


class Exported(BaseModel):
    """What the file says.

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
        """What was exported, in words."""
        tuned = f" with the LITE adapter {self.adapter_sha256[:12]} merged" if self.adapter_sha256 else ""
        return f"exported from {self.base_model}{tuned}"


def read_exported(spec: ModelSpec, request: ModelRequest) -> Exported | None:
    """Return what a model's folder says of where its weights come from; ``None`` where no export wrote it.

    Raises:
        ModelError: the file cannot be read, or says what cannot be.
        ConfigError: base weights are asked for where tuned ones lie.
    """
    file = Path(spec.location) / FILE
    if request.weights == "random" or not spec.location or not os.path.lexists(file):
        return None
    try:
        found = Exported.model_validate(read_object(file))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ModelError(f"cannot read {file}: {where}: {complaint(error)}. Export the model again.") from None
    if found.weights == "tuned" and request.weights == "pretrained":
        raise ConfigError(
            f"--weights pretrained: {spec.name} holds tuned weights, {found.made_of}. Its base weights are those of "
            f"--model {found.base_model}."
        )
    return found


def exported_weights(spec: ModelSpec, exported: Exported, files: str) -> Weights:
    """Return which weights lie in an exported folder.

    Args:
        spec: where the folder is.
        exported: what it says.
        files: fingerprint of what lies there.

    Raises:
        ModelError: they are not those that it speaks of, or nothing says what they have read.
    """
    if exported.weights == "tuned" and not (provenance := Path(spec.location) / PARTS / f"{MERGED}.json").is_file():
        raise ModelError(
            f"{provenance} is missing, which says what the tuned weights beside it have read: no sample could be "
            "trusted to be new to them. Copy the exported folder whole."
        )
    if files != exported.files:
        raise ModelError(
            f"{Path(spec.location) / FILE} was written with other files ({exported.files}) than lie beside it "
            f"({files}): weights, config.json, tokenizer or end tokens. Export the model again, or remove that file: "
            "they are base weights of their own then."
        )
    return exported.weights
