"""Trained artefacts on disk: tensors as safetensors, and beside them a JSON that says what they are and belong to.

Nothing here is ever unpickled. Artefacts are looked for in ``artefacts/MODEL`` below the working directory, where
``harness train`` puts them, and then among those that ship with the harness. Which model one belongs to is told by a
fingerprint of its weights, never by name; a reader that finds another one is refused with both values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ArtefactError
from harness.host.atomic_files import replace_files
from harness.host.foreign_files import DocumentError, read_bytes, read_json
from harness.host.libraries import library_border
from harness.models.artefact_facts import NEEDED, fault_in
from harness.models.finite import fault_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LARGEST_TENSORS_BYTES",
    "PICKLES",
    "SHIPPED",
    "Artefact",
    "json_path",
    "look_into",
    "read_artefact",
    "write_artefact",
]

SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""Artefacts that come with the harness, one folder per model and recipe."""

FORMAT = 1
LARGEST_TENSORS_BYTES = 16 << 30
"""Of an artefact's tensors; those of a LoRA adapter of 70 billion weights have a few GiB."""
PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".zip", ".ckpt"})
"""Endings of files that may run code when they are read."""


@dataclass(frozen=True, eq=False)
class Artefact:
    """One artefact.

    Attributes:
        kind: what it is: ``adapter``, ``shortcut``, ``classifier``, ``lte``, ``rl`` …
        path: its JSON file.
        facts: everything the JSON says besides kind, format and hash.
        sha256: of the tensor file, hex.
    """

    kind: str
    path: Path
    facts: Mapping[str, Any]
    sha256: str

    def tensors(self, device: str = "cpu", shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        """Read the tensors.

        Args:
            device: where they shall be.
            shapes: name → shape of those that must be there, numbers of floating point; see :meth:`check`.

        Raises:
            ArtefactError: the file is missing, damaged, or not the one the JSON describes; a tensor holds a number
                that is not finite, is missing, or is of another shape or type.
        """
        from safetensors.torch import load

        file, again = self.path.with_suffix(".safetensors"), f"Make the {self.kind} again."
        try:
            content = read_bytes(file, LARGEST_TENSORS_BYTES)
        except OSError as error:
            raise ArtefactError(f"cannot read {file}: {error.strerror}. {again}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ArtefactError(f"{file} is not the file {self.path.name} describes (its hash differs). Make it again.")
        with library_border(f"{file} is damaged", again, ArtefactError):
            tensors = load(content)
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and (fault := fault_of(tensor)):
                    raise ArtefactError(f"{file}: {name} {fault}. {again}")
        self.check(tensors, shapes or {})
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def check(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse tensors that are not what they must be.

        Args:
            tensors: those of the file.
            shapes: name → shape of those that must be there, numbers of floating point.

        Raises:
            ArtefactError: one is missing, or of another shape or type.
        """
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
    """Write ``path`` (a ``.json``) and the ``.safetensors`` beside it; whole or not at all.

    Raises:
        ArtefactError: the folder cannot be written to.
    """
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
    """Read an artefact's JSON; its tensors are read when they are asked for.

    Raises:
        ArtefactError: missing, not JSON, of another kind or format, with facts that cannot be, or a pickle.
    """
    if path.suffix in PICKLES:
        raise ArtefactError(
            f"{path} may be a pickle, which can run code when it is read; the harness reads safetensors with a JSON "
            f"beside them only. Give the .json that `harness train` wrote."
        )
    path = json_path(path)
    try:
        facts = read_json(path)
    except OSError as error:
        raise ArtefactError(f"cannot read the {kind} {path}: {error.strerror}.") from None
    except DocumentError as error:
        raise ArtefactError(f"cannot read {path}: {error}. Give the .json that `harness train` wrote.") from None
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
    """Return what a JSON in a folder of artefacts says; nothing where it says nothing that can be used.

    For whoever looks for artefacts: loading one says what is wrong with it.
    """
    try:
        facts = read_json(path)
    except (OSError, DocumentError):
        return {}
    return facts if isinstance(facts, dict) and not fault_in(facts) else {}
