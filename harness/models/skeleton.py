"""A model without its weights, as its family reads it: what packed weights are filled into.

Made once by transformers, with parameters that hold nothing, and kept as plain facts: shapes, constants of norms, and
names of activations and rotary tables that gave the same bits as transformers' own. A model with something else is made
again each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding.backbone import Backbone, Embedding
from harness.decoding.blocks import Block, HeadShape, LayerNorm, Linear, RMSNorm, Rotary
from harness.decoding.families import read
from harness.host.cache import keep_document, kept_document
from harness.models.configuration import key_of_folder
from harness.models.folder import quiet


def _new_gelu(x: Tensor) -> Tensor:
    """GPT-2's, in transformers' own steps."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Block, Embedding, HeadShape, LayerNorm, Linear, RMSNorm)}
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "tanh": partial(F.gelu, approximate="tanh"),
    "new": _new_gelu,
}  # fmt: skip
_WHOLE = ("blocks", "heads", "embed", "final_norm", "project_out", "lm_head")  # of a Backbone, beside its rotary tables
_POSITIONS = 4096  # that tables are compared at; a table's row depends on its own position alone


def skeleton(folder: Path, dtype: str) -> Backbone:
    """Return the model of a local folder without weights; only transformers' first reading of it imports that."""
    key = key_of_folder("skeleton", folder, dtype, torch.__version__)
    said = None if key is None else kept_document("configurations", key)
    if said is not None:
        return _made(said, getattr(torch, dtype))
    module = without_weights(folder, dtype)
    found = read(module)
    if key is not None and (told := _told(found, module)) is not None:
        keep_document("configurations", key, told)
    return found


def without_weights(folder: Path, dtype: str) -> Any:
    """Return the transformers model of a local folder with parameters on the meta device: they hold nothing.

    Word embeddings are numbers that stand for all of theirs, and position tables are computed, so that a family reads
    it as any other.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        config = AutoConfig.from_pretrained(  # nosec B615  # a local folder
            folder, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    for part in module.modules():
        if getattr(part, "inv_freq", None) is not None:
            for name, buffer in type(part)(part.config).named_buffers(recurse=False):
                setattr(part, name, buffer)
    embeddings = module.get_input_embeddings()
    one = torch.zeros((1, 1), dtype=embeddings.weight.dtype).expand(embeddings.weight.shape)
    embeddings.weight = torch.nn.Parameter(one, requires_grad=False)
    return module.requires_grad_(requires_grad=False).eval()


def rotary_of(frequencies: Tensor, scaling: float, heads: HeadShape, dtype: torch.dtype) -> Callable[[int], Rotary]:
    """Make rotary tables of frequencies, float32 ``[rotary_dim / 2]``, as transformers does."""

    def make(positions: int) -> Rotary:
        turns = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
        angles = torch.cat((turns, turns), dim=-1)
        return Rotary((angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype), heads)

    return make


class _ForeignError(Exception):
    """Something of a model is none of the plain parts."""


def _told(backbone: Backbone, module: Any) -> dict[str, Any] | None:
    """Return a skeleton as a JSON value; ``None`` where a part of it is none that is known here."""
    try:
        told = {name: _value(getattr(backbone, name)) for name in _WHOLE}
        return told | {"rotary": _turning(backbone, module)}
    except _ForeignError:
        return None


def _value(one: Any) -> Any:
    if one is None or type(one) in (bool, int, float):
        return one
    if isinstance(one, torch.dtype):
        return {"dtype": str(one).removeprefix("torch.")}
    if isinstance(one, Tensor):
        return {"tensor": list(one.shape), "dtype": str(one.dtype).removeprefix("torch.")}
    if isinstance(one, list | tuple):
        return [_value(each) for each in one]
    if _KINDS.get(type(one).__name__) is type(one):
        parts = {part.name: _value(getattr(one, part.name)) for part in fields(one) if part.init}
        return {"kind": type(one).__name__, **parts}
    numbers = torch.cat([torch.linspace(-reach, reach, 4099) for reach in (1.0, 8.0, 300.0)])
    for name, known in _ACTIVATIONS.items() if callable(one) else ():
        if all(torch.equal(one(x), known(x)) for x in (numbers, numbers.bfloat16(), numbers.half())):
            return {"activation": name}
    raise _ForeignError


def _turning(backbone: Backbone, module: Any) -> dict[str, Any] | None:
    if backbone.rotary is None:
        return None
    theirs = backbone.rotary(_POSITIONS).plain
    for part in module.modules():
        frequencies, scaling = getattr(part, "inv_freq", None), getattr(part, "attention_scaling", None)
        if frequencies is not None and frequencies.dtype is torch.float32 and isinstance(scaling, int | float):
            ours = rotary_of(frequencies, scaling, backbone.heads, backbone.dtype)(_POSITIONS).plain
            if all(map(torch.equal, ours, theirs)):
                return {"frequencies": frequencies.tolist(), "scaling": scaling}
    raise _ForeignError


def _made(said: dict[str, Any], dtype: torch.dtype) -> Backbone:
    """Return a skeleton of the JSON value that was kept of it."""
    parts = {name: _part(said[name]) for name in _WHOLE}
    turning, rotary = said["rotary"], None
    if turning is not None:
        rotary = rotary_of(torch.tensor(turning["frequencies"]), turning["scaling"], parts["heads"], dtype)
    return Backbone(rotary=rotary, like=torch.empty(0, dtype=dtype), **parts)


def _part(said: Any) -> Any:
    if isinstance(said, list):
        return [_part(each) for each in said]
    if not isinstance(said, dict):
        return said
    if "kind" in said:
        return _KINDS[said["kind"]](**{name: _part(part) for name, part in said.items() if name != "kind"})
    if "activation" in said:
        return _ACTIVATIONS[said["activation"]]
    dtype, shape = getattr(torch, said["dtype"]), said.get("tensor")
    if shape is None or len(shape) > 1:
        return dtype if shape is None else torch.empty(shape, dtype=dtype, device="meta")
    return torch.zeros(1, dtype=dtype).expand(shape)  # norms compute with theirs
