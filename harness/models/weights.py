"""Weights as a transformers model on the CPU: read whole from safetensors or a GGUF file, or drawn at random.

A GGUF file may also be read as a model whose parts are dequantised each time they are asked for
(:meth:`StoredWeights.backbone`): packing it takes the memory of what is packed and of one layer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Block, Linear
from harness.decoding.families import read
from harness.errors import ArtefactError, ModelError
from harness.host.cache import keep_document, kept_document
from harness.host.hub import hub_in_reach
from harness.host.libraries import library_border
from harness.models.artefacts import Artefact, fault_of
from harness.models.folder import check_files, check_index, commit_of, model_file, quiet, read_object, sha256_of
from harness.models.gguf import GgufFile
from harness.models.skeleton import without_weights
from harness.models.source import ALTERNATIVES, ModelSpec, local_folder


def random_weights(config: Any, dtype: str, seed: int) -> tuple[Any, str]:
    """Return a model with random weights, and what it says of their source."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with quiet(), library_border("random weights cannot be drawn for this configuration", ALTERNATIVES):
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    return module, f"random weights, seed {seed}"


class StoredWeights:
    """The weights of a GGUF file as a transformers model's, dequantised when they are asked for.

    Args:
        spec: of the model.
        dtype: torch dtype of the model.

    Attributes:
        source: where they come from, in words.

    Raises:
        ModelError: the file cannot be used, or its tensors are not those of its configuration.
    """

    def __init__(self, spec: ModelSpec, dtype: str) -> None:
        path, found = spec.gguf, local_folder(spec)
        assert path is not None
        assert found is not None
        folder, self.source = found
        self._spec, self._file, self._dtype = spec, GgufFile(path), dtype
        self._module = without_weights(folder, dtype)
        self._names = self._file.names_of(self._module)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter with its name, one that is tied once."""
        seen: set[str] = set()
        for name, stored in self._names.items():
            if stored not in seen:
                yield name, self._file.parameter(stored, getattr(torch, self._dtype))
            seen.add(stored)

    def sha256(self) -> str:
        """Return what :func:`digest` does, once :func:`checked`; both are done once for a file's content."""
        key = hashlib.sha256(f"parameters {sha256_of(self._file.path)} {self._dtype}".encode()).hexdigest()
        found = kept_document("digests", key)
        if not isinstance(found, str):
            keep_document("digests", key, found := digest(checked(self.parameters(), self._spec)))
        return found

    def module(self) -> Any:
        """Return the whole model."""
        for name, tensor in self.parameters():
            self._set(name, tensor)
        self._module.tie_weights()
        return self._module

    def backbone(self) -> Backbone:
        """Return the model; layers, word embeddings and LM head are read each time they are asked for."""
        layers = next(name for name, part in self._module.named_modules() if isinstance(part, nn.ModuleList))
        tables = {name: StoredRows(self._file, name) for name in _TABLES if name in self._file.tensors}
        for name, stored in self._names.items():
            if stored not in tables and not name.startswith(f"{layers}."):
                self._set(name, self._file.parameter(stored))
        found = read(self._module)
        words, head = tables[_TABLES[0]], tables.get(_TABLES[1], tables[_TABLES[0]])
        return replace(
            found,
            blocks=_StoredBlocks(self, layers, found.num_layers),
            embed=replace(found.embed, words=cast("Tensor", words)),
            lm_head=Linear(cast("Tensor", head)),
            like=torch.empty(0),
        )

    def layer(self, prefix: str, at: int) -> Block:
        """Read a layer, of which nothing stays but what is returned."""
        for name, stored in self._names.items():
            if name.startswith(f"{prefix}.{at}."):
                self._set(name, self._file.parameter(stored))
        found = read(self._module).blocks[at]
        self._module.get_submodule(f"{prefix}.{at}").to("meta")
        return found

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(self._module.get_submodule(owner), leaf, nn.Parameter(tensor))


_TABLES = ("token_embd.weight", "output.weight")  # word embeddings, and the LM head where it has its own


@dataclass(frozen=True, slots=True)
class _StoredBlocks(Sequence[Block]):
    """Layers that are read each time they are asked for."""

    weights: StoredWeights
    prefix: str
    layers: int

    def __len__(self) -> int:
        return self.layers

    @overload
    def __getitem__(self, at: int) -> Block: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Block]: ...
    def __getitem__(self, at: int | slice) -> Block | Sequence[Block]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(self.layers))]
        if not 0 <= at < self.layers:
            raise IndexError(at)
        return self.weights.layer(self.prefix, at)


class StoredRows:
    """A float32 table ``[rows, width]`` of a GGUF file, read by rows; all else is asked of the whole of it."""

    _TOGETHER = 1 << 24  # numbers

    def __init__(self, file: GgufFile, name: str) -> None:
        self._file, self._name = file, name
        self.shape, self.is_meta = torch.Size(file.tensors[name].shape), False

    def __getitem__(self, rows: slice) -> Tensor:
        first, last, _ = rows.indices(self.shape[0])
        return self._file.rows(self._name, first, last)

    def __getattr__(self, name: str) -> Any:
        return getattr(self[:], name)

    def data_ptr(self) -> int:
        """Return what tells it apart, as a tensor's address does."""
        return id(self)

    def to(self, dtype: torch.dtype) -> Tensor:
        """Return it in another dtype."""
        return self._file.rows(self._name, dtype=dtype)

    def aminmax(self) -> tuple[Tensor, Tensor]:
        """Return its least and its greatest number."""
        step = max(1, self._TOGETHER // self.shape[1])
        ends = [self[start : start + step].aminmax() for start in range(0, self.shape[0], step)]
        return torch.stack([end.min for end in ends]).min(), torch.stack([end.max for end in ends]).max()


def read_weights(spec: ModelSpec, dtype: str) -> tuple[Any, str]:
    """Return a model with its base weights, and where they came from in words."""
    found = local_folder(spec)
    folder, source = (spec.location, spec.location) if found is None else (str(found[0]), found[1])
    if spec.gguf is not None:
        with library_border(f"weights of {spec.name} cannot be read from {source}", ALTERNATIVES):
            return StoredWeights(spec, dtype).module(), source
    local = not hub_in_reach()
    failure = f"weights of {spec.name} cannot be read from {source} as safetensors"
    with quiet(), library_border(failure, ALTERNATIVES):
        if Path(folder).is_dir():  # what would hang or mislead the library
            check_files(Path(folder))
            if (file := Path(folder) / "generation_config.json").exists():
                read_object(file)
        check_index(folder, local_files_only=local)
        module = _read_safetensors(spec, folder, source, getattr(torch, dtype), local_files_only=local)
    commit = None if found is not None else commit_of(spec.location)
    return module, f"{source} at {commit[:12]}" if commit else source


def _read_safetensors(spec: ModelSpec, folder: str, source: str, dtype: Any, *, local_files_only: bool) -> Any:
    """Read safetensors whole; transformers would fill what is missing with random numbers and go on."""
    from transformers import AutoModelForCausalLM

    try:
        module, found = AutoModelForCausalLM.from_pretrained(  # nosec B615  # safetensors alone; runs record the commit
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local_files_only,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"model.safetensors of {spec.name} ({source}) is damaged: {error}. Fetch it again.") from error
    wrong = [str(item[0]) if isinstance(item, tuple | list) else str(item) for item in found["mismatched_keys"]]
    layers = ((name, re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)) for name in found["unexpected_keys"])
    beyond = [name for name, layer in layers if layer and int(layer[1]) >= module.config.num_hidden_layers]
    for what, names in (
        ("lack", sorted(found["missing_keys"])),
        ("have another shape in", sorted(wrong)),
        ("have more layers:", sorted(beyond)),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"weights of {spec.name} ({source}) {what} {names[0]}{more}: they do not belong to its config.json."
            )
    return module


def checked(parameters: Iterable[tuple[str, Tensor]], spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters with their names; refuse those with which a model says nothing.

    These are of no floating point, not finite, or a matrix or scale of zeros.
    """
    found = local_folder(spec)
    config = model_file(str(found[0]) if found else spec.location, "config.json", local_files_only=True)
    stored: dict[str, tuple[Path | str, str]] = {}
    for file in sorted(config.parent.glob("*.safetensors")) if config is not None else ():
        with safe_open(file, "pt") as content:
            names = content.keys()
            stored |= {name: (file, content.get_slice(name).get_dtype()) for name in names}
    for name, parameter in parameters:
        alike = (other for other in stored if other.endswith(f".{name}") or name.endswith(f".{other}"))
        where, kind = stored.get(name if name in stored else next(alike, ""), (f"weights of {spec.name}", "F"))
        fault = fault_of(parameter, zeros=name.endswith("bias"))
        if not kind.startswith(("F", "BF")):  # which transformers casts without a word
            fault = f"is stored as {kind}, and not in floating point"
        if fault:
            raise ModelError(f"{where}: {name} {fault}, with which the model says nothing. Fetch the file again.")
        yield name, parameter


def parameters_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter with its name, those that share their numbers once."""
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() not in seen:
            yield name, parameter
        seen.add(parameter.data_ptr())


def digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash over names, dtypes and bytes of parameters, hex."""
    total = hashlib.sha256()
    for name, parameter in parameters:
        total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        numbers: Any = parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()
        total.update(numbers)
    return total.hexdigest()


def merge(module: Any, adapter: Artefact) -> None:
    """Add an adapter's low-rank updates to the weights of a transformers model, in place.

    ``W += scale · B A`` in float32 (Hu 2021, arXiv 2106.09685), so that decoding pays nothing for it.
    """
    factors: dict[str, dict[str, Any]] = {}
    for name, tensor in adapter.tensors().items():
        target, _, side = name.rpartition(".")
        factors.setdefault(target, {})[side] = tensor
    modules = dict(module.named_modules())
    if "scale" not in adapter.facts:
        raise ArtefactError(f"{adapter.path} does not say by which scale it was trained (scale). Train it again.")
    scale = float(adapter.facts["scale"])
    for target, sides in factors.items():
        weight = getattr(modules.get(target), "weight", None)
        if weight is None or set(sides) != {"lora_A", "lora_B"}:
            raise ArtefactError(f"{adapter.path} tunes {target}, which this model has not.")
        failure = f"{adapter.path}: {target} is not tuned by two matrices"
        with library_border(failure, "Train the adapter again.", ArtefactError):
            update = scale * torch.mm(sides["lora_B"].float(), sides["lora_A"].float())
        if type(modules[target]).__name__ == "Conv1D":
            update = update.t()
        if update.shape != weight.shape:
            raise ArtefactError(f"{adapter.path}: {target} has shape {tuple(weight.shape)}, not {tuple(update.shape)}.")
        weight.data = (weight.data.float() + update).to(weight.dtype)
        if fault := fault_of(weight.data):
            raise ArtefactError(f"{adapter.path}: {target} {fault} once it is merged. Train the adapter again.")
