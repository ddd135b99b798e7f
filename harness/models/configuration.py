"""A model's configuration: read by transformers once, and what the harness needs of it kept for the next process.

To import transformers and to lay a model out takes longer than to read packed weights. What came of it is kept under a
hash of the configuration, of the family's code and of transformers' version; only what was accepted is kept.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.decoding.families import check_config, check_family, position_limit
from harness.errors import ModelError, OutOfReachError, reason
from harness.host.cache import keep_document, kept_document
from harness.host.hub import hub_in_reach, hub_offline
from harness.host.libraries import library_border
from harness.models.folder import REMEDY, check_configuration, check_facts, check_files, quiet, read_object
from harness.models.source import ALTERNATIVES, ModelSpec, local_folder
from harness.registry import FAMILIES

_LAYOUT = 1  # of what is kept


class Shape(BaseModel):
    """What a configuration says of a model.

    Attributes:
        family: transformers ``model_type``.
        max_positions: longest sequence that full attention covers, tokens.
        ends: ids that end a generation.
        kv_width: numbers of K and V of one position in one layer.
        matrices, vectors: numbers in the matrices of a layer, and in its norms and biases.
        head: numbers in the LM head.
        chosen: what the configuration sets, without what a version of transformers adds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    ends: tuple[int, ...]
    kv_width: int
    matrices: int
    vectors: int
    head: int
    chosen: dict[str, Any]


def read_shape(spec: ModelSpec, weights: str) -> Shape:
    """Return what a model's configuration says; random weights of a catalogue model need neither hub nor files.

    Raises:
        ModelError: there is none, it makes no model, or the engine cannot decode it exactly.
    """
    key = None
    if _is_of_catalogue(spec, weights):
        key = key_of("shape", spec.model_type, json.dumps(dict(spec.shape), sort_keys=True, default=str))
    elif (found := local_folder(spec)) is not None:
        check_files(found[0])
        key = key_of_folder("shape", found[0])
    kept = None if key is None else kept_document("configurations", key)
    if kept is not None:
        return Shape.model_validate(kept)
    shape = _shape_of(spec, read_config(spec, weights))
    if key is not None:
        keep_document("configurations", key, shape.model_dump(mode="json"))
    return shape


def key_of_folder(what: str, folder: Path, *remarks: str) -> str | None:
    """Return the key of something that follows from a folder's configuration; ``None`` where it cannot be read."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    family = str(read_object(file).get("model_type", ""))
    others = sorted(folder.glob("config*.json"))  # of other versions of transformers
    return key_of(what, family, *(hashlib.sha256(each.read_bytes()).hexdigest() for each in others), *remarks)


def key_of(what: str, family: str, *remarks: str) -> str | None:
    """Return the key of something that transformers and a family's code make of a configuration, hex.

    ``None`` where the family is not registered, which is for others to refuse.
    """
    if family not in FAMILIES:
        return None
    total = hashlib.sha256(f"{_LAYOUT} {what} {family} {version('transformers')} {remarks}".encode())
    for kind in type(FAMILIES.load(family)()).__mro__:
        if file := getattr(sys.modules[kind.__module__], "__file__", None):
            total.update(Path(file).read_bytes())
    return total.hexdigest()


def _is_of_catalogue(spec: ModelSpec, weights: str) -> bool:
    return spec.wheel is not None or (weights == "random" and bool(spec.shape) and not hub_in_reach())


def read_config(spec: ModelSpec, weights: str) -> Any:
    """Return the transformers configuration of a model."""
    from transformers import AutoConfig, PretrainedConfig

    if _is_of_catalogue(spec, weights):
        return AutoConfig.for_model(spec.model_type, **spec.shape)
    found = local_folder(spec)
    here, place = found is not None, spec.location if found is None else str(found[0])
    file = str(Path(place) / "config.json") if here else f"config.json of {place}"
    if here:  # before a library looks into it
        check_files(Path(place))
        if not Path(file).exists():
            files = sorted(Path(place).glob("*.gguf"))
            remedy = f" Give its GGUF file: --model {files[0]}" if files else ""
            raise ModelError(f"{place} holds no transformers model: there is no config.json in it.{remedy}")
        check_facts(read_object(Path(file)), file)
    remedy = f"Write what is expected there. {REMEDY}" if here else ALTERNATIVES
    try:
        with quiet(), library_border(f"{file} cannot be used", remedy, passing=(OSError, ValueError)):
            facts, _ = PretrainedConfig.get_config_dict(place, local_files_only=not hub_in_reach())
            check_facts(facts, file)
            if "model_type" in facts:  # before transformers is asked, which may learn of the architecture with it
                check_family(facts["model_type"])
            config = AutoConfig.from_pretrained(  # nosec B615  # the newest of what the user names; runs record it
                place, local_files_only=not hub_in_reach(), trust_remote_code=False
            )
            check_configuration(config, file)
            return config
    except (OSError, ValueError) as error:
        if weights == "random" and spec.shape:
            return AutoConfig.for_model(spec.model_type, **spec.shape)
        if here:
            raise ModelError(f"{place} holds no transformers model: {reason(error)}. {REMEDY}") from error
        reach = "was refused by the hub" if hub_in_reach() else "is not cached and the model hub is out of reach"
        reach += " (HF_HUB_OFFLINE is set)" if hub_offline() else ""
        if spec.name == spec.location and Path(spec.name).parent.is_dir():  # as likely a folder as a hub id
            raise OutOfReachError(f"the model folder {spec.name} does not exist. As a hub id, it {reach}.") from error
        raise OutOfReachError(f"model {spec.name} ({spec.location}) {reach}.", ALTERNATIVES) from error


def _shape_of(spec: ModelSpec, config: Any) -> Shape:
    with library_border(f"the configuration of {spec.name} makes no model"):
        check_config(config)
        matrices, vectors, head = _numbers(config)
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        ends = config.eos_token_id
        return Shape(
            family=config.model_type,
            num_layers=int(config.num_hidden_layers),
            hidden_size=int(config.hidden_size),
            vocab_size=int(config.vocab_size),
            max_positions=position_limit(config),
            ends=tuple(ends if isinstance(ends, list) else [] if ends is None else [ends]),
            kv_width=2 * kv_heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            matrices=matrices,
            vectors=vectors,
            head=head,
            chosen=json.loads(json.dumps(_chosen(config), default=str)),
        )


def _numbers(config: Any) -> tuple[int, int, int]:
    """Return how many numbers are in the matrices and in the vectors of a layer, and in the LM head."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet():
        module = AutoModelForCausalLM.from_config(config)
    layers = next(m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0)
    matrices = sum(parameter.numel() for parameter in layers[0].parameters() if parameter.dim() > 1)
    vectors = sum(parameter.numel() for parameter in layers[0].parameters() if parameter.dim() == 1)
    return matrices, vectors, module.get_output_embeddings().weight.numel()


def _chosen(config: Any) -> dict[str, Any]:
    """Return what a configuration sets: not the version that read it, nor what a later one adds to all of them."""
    chosen = config.to_diff_dict().items()
    return {key: value for key, value in chosen if not key.startswith("_") and key != "transformers_version"}
