"""Trained artefacts on disk: tensors as safetensors, and beside them a JSON that says what they are and belong to.

Nothing here is ever unpickled. Which model one belongs to is told by a fingerprint of its weights, never by its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.errors import ArtefactError, complaint
from harness.host.files import DocumentError, read_bytes, read_json, refusing, replace_files
from harness.host.libraries import library_border

if TYPE_CHECKING:
    from torch import Tensor


def fault_of(tensor: Tensor, *, zeros: bool = True) -> str:
    """Return what is wrong with a tensor, a phrase behind its name; empty where nothing is."""
    if not tensor.numel():
        return ""
    least, most = (end.item() for end in tensor.detach().aminmax())  # both are NaN where one element is
    if math.isnan(least):
        return "holds NaN"
    if math.isinf(least) or math.isinf(most):
        return "holds infinity"
    return "" if zeros or least or most else "is all zeros"


NEEDED: Mapping[str, tuple[str, ...]] = {
    "adapter": ("model_fingerprint",),
    "shortcut": ("model_fingerprint", "exit_points"),
    "prompt-exit": ("model_fingerprint", "exits"),
}
"""Kind → facts without which it is of no use."""

_Layer = Annotated[int, Field(ge=1, le=1000)]
_Count = Annotated[int, Field(ge=0)]


class ArtefactFacts(BaseModel):
    """Facts of any kind of artefact, those that are absent left out; what is not read here may be anything.

    Attributes:
        kind: ``adapter``, ``shortcut``, or the recipe that made it.
        sha256: of the tensor file beside it.
        model, model_fingerprint: the weights that it belongs to. base_fingerprint: of those before tuning.
        adapter_sha256: of the adapter that was tuned together with a shortcut.
        tokenizer_fingerprint: of the model's tokenizer.
        exit_module: of a shortcut, NAME or NAME/SIZE; absent for ``linear``.
        exit_head: that it was trained for: ``shared``, or ``shortcut:`` and a hash.
        num_layers, hidden_size, exit_points: of the model.
        documents: keys of what it has read. ngrams: index of all its texts, in a file beside it.
        projects: that these belong to, as far as they say so.
        data: what a tuning has read, by task and source. trained_on: likewise, of any other training.
        recipe: how it was trained. training: of a checkpoint, the settings that it goes on with.
        start: the tuning that this one went on from. seed: of all that was random. steps, tokens: trained on so far.
        scale: of an adapter's products.
        threshold: to begin with. temperature: of an agent's decision.
        activation: of a network. observation: what it looks at.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    kind: str = ""
    sha256: str = ""
    adapter_sha256: str | None = None
    model: str = ""
    model_fingerprint: str = ""
    base_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    exit_head: str = ""
    exit_module: str = "linear"
    num_layers: _Layer = 1
    hidden_size: Annotated[int, Field(ge=1, le=1 << 17)] = 1
    exit_points: list[_Layer] = Field(default_factory=list)
    documents: list[str] = Field(default_factory=list)
    projects: list[str] = Field(default_factory=list)
    ngrams: dict[str, Any] | None = None
    data: list[dict[str, Any]] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    trained_on: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    start: dict[str, Any] | None = None
    seed: int = 0
    steps: _Count = 0
    tokens: _Count = 0
    scale: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    threshold: float = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    activation: Literal["tanh", "relu"] = "tanh"
    observation: dict[str, Any] = Field(default_factory=dict)

    @field_validator("exit_points")
    @classmethod
    def _ascend(cls, points: list[int]) -> list[int]:
        if points != sorted(set(points)):
            raise ValueError("layers must ascend, each once")
        return points


def fault_in(facts: Mapping[str, Any], needed: tuple[str, ...] = ()) -> str:
    """Return what is wrong with an artefact's facts, a phrase; empty where nothing is."""
    for name in needed:
        if name not in facts:
            return repr(name)
    try:
        ArtefactFacts.model_validate(facts)
    except ValidationError as error:
        return f"{'.'.join(map(str, error.errors()[0]['loc']))}: {complaint(error)}"
    return ""


SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""Artefacts that come with the harness, one folder per model and recipe."""

FORMAT = 1
FACTS = ".json"
"""Behind the name of a part where a record has the hash of its facts."""

LARGEST_TENSORS_BYTES = 16 << 30
"""Of an artefact's tensors; those of a LoRA adapter of 70 billion weights have a few GiB."""
PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".zip", ".ckpt"})
"""Endings of files that may run code when they are read."""


def read_verified(file: Path, sha256: str, limit: int, remedy: str) -> bytes:
    """Return the content of a file that a JSON describes by its hash."""
    with refusing(file, ArtefactError, remedy):
        content = read_bytes(file, limit)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtefactError(f"{file} is not the file that its JSON describes (its hash differs). {remedy}")
    return content


@dataclass(frozen=True, eq=False)
class Artefact:
    """One artefact: its kind, its JSON file with everything that it says, and the hash of the tensors beside it.

    What it does follows from both: a threshold, what a network looks at and which head it was trained for are facts.
    """

    kind: str
    path: Path
    facts: Mapping[str, Any]
    sha256: str

    def hashes(self, part: str = "") -> dict[str, str]:
        """Return all that decides what it does, for a record: SHA-256 of its tensors, ``part``, and of its facts."""
        part = part or self.kind
        return {part: self.sha256, f"{part}{FACTS}": self._facts_sha256}

    @cached_property
    def _facts_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    def tensors(self, device: str = "cpu", shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        """Read the tensors, and refuse those that are damaged, not finite, or of other shapes (:meth:`check`)."""
        from safetensors.torch import load

        file, again = self.path.with_suffix(".safetensors"), f"Make the {self.kind} again."
        content = read_verified(file, self.sha256, LARGEST_TENSORS_BYTES, again)
        with library_border(f"{file} is damaged", again, ArtefactError):
            tensors = load(content)
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and (fault := fault_of(tensor)):
                    raise ArtefactError(f"{file}: {name} {fault}. {again}")
        self.check(tensors, shapes or {})
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def check(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse tensors that are missing, of other shapes, or no floating point."""
        for name, shape in shapes.items():
            tensor = tensors.get(name)
            if tensor is None:
                fault = "is missing"
            elif tuple(tensor.shape) != shape:
                fault = f"has shape {tuple(tensor.shape)}, and {shape} is needed"
            elif not tensor.is_floating_point():
                fault = f"is of {tensor.dtype}, and floating point is needed"
            else:
                continue
            raise ArtefactError(f"{self.path.with_suffix('.safetensors')}: {name} {fault}. Make the {self.kind} again.")


def write_artefact(path: Path, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Artefact:
    """Write ``path`` (a ``.json``) and the ``.safetensors`` beside it; whole or not at all."""
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    text = json.dumps({"format": FORMAT, "kind": kind, "sha256": digest, **facts}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_files({path.with_suffix(".safetensors"): content, path: text.encode()}, durable=True)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}.") from None
    return Artefact(kind, path, dict(facts), digest)


def json_path(path: Path) -> Path:
    """Return the JSON of an artefact that is given by either file or by its name alone, which may hold dots."""
    if path.suffix in (".json", ".safetensors"):
        return path.with_suffix(".json")
    return path.with_name(f"{path.name}.json")


def read_artefact(path: Path, kind: str) -> Artefact:
    """Read an artefact's JSON; its tensors are read when they are asked for."""
    if path.suffix in PICKLES:
        raise ArtefactError(
            f"{path} may be a pickle, which can run code when it is read; the harness reads safetensors with a JSON "
            f"beside them only. Give the .json that `harness train` wrote."
        )
    path = json_path(path)
    with refusing(path, ArtefactError, "Give the .json that `harness train` wrote."):
        facts = read_json(path)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise ArtefactError(f"{path} is not an artefact of format {FORMAT} (it says {found!r}). Make it again.")
    if "sha256" not in facts:
        raise ArtefactError(f"{path} does not say which tensors belong to it (sha256). Make it again.")
    if facts.pop("kind", None) != kind:
        raise ArtefactError(f"{path} holds no {kind}. Give the .json that `harness train` wrote for it.")
    if fault := fault_in(facts, NEEDED.get(kind, ())):
        raise ArtefactError(f"{path} lacks what a {kind} needs ({fault}). Train it again.")
    facts.pop("format")
    return Artefact(kind, path, facts, facts.pop("sha256"))


def look_into(path: Path) -> Mapping[str, Any]:
    """Return what a JSON in a folder of artefacts says; nothing where it says nothing that can be used."""
    try:
        facts = read_json(path)
    except (OSError, DocumentError):
        return {}
    return facts if isinstance(facts, dict) and not fault_in(facts) else {}


def look_through(folders: Iterable[Path]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Iterate the artefacts in some folders, each with what its JSON says; those that cannot be used are left out."""
    for file in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        if facts := look_into(file):
            yield file, facts
