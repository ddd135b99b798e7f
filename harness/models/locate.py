"""Where a model is: from the name a user typed to its catalogue entry and its transformers configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.config.model import DEFAULT_MODEL
from harness.contracts import WeightsChoice
from harness.decoding.families import check_family
from harness.errors import ModelError, UnknownNameError
from harness.host.hub import hub_in_reach
from harness.models.quiet import quiet
from harness.models.spec import ModelSpec
from harness.registry import MODELS

__all__ = ["ALTERNATIVES", "find_spec", "read_config"]

ALTERNATIVES = f"Use --weights random, --model {DEFAULT_MODEL}, or --model FOLDER with the files in it."


def find_spec(name: str) -> ModelSpec:
    """Return the catalogue's entry, or one for a folder or a hub id.

    Raises:
        UnknownNameError: it is none of the three.
    """
    if name in MODELS:
        spec: ModelSpec = MODELS.load(name)
        return spec
    if Path(name).is_dir():
        return ModelSpec(name=Path(name).resolve().name, location=name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelSpec(name=name, location=name)
    raise UnknownNameError("model", name, MODELS.names(), "A hub id (owner/name) or a folder works too.")


def read_config(spec: ModelSpec, weights: WeightsChoice) -> Any:
    """Return the transformers configuration; random weights of a catalogue model need neither hub nor files.

    Raises:
        ModelError: it cannot be had.
    """
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
        raise ModelError(f"model {spec.name} ({spec.location}) {reach}. {ALTERNATIVES}") from error
