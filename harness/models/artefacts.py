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

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PICKLES",
    "SHIPPED",
    "Artefact",
    "json_path",
    "read_artefact",
    "write_artefact",
]

SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
"""Artefacts that come with the harness, one folder per model and recipe."""

FORMAT = 1
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

    def tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        """Read the tensors.

        Raises:
            ArtefactError: the file is missing, damaged, or not the one the JSON describes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = self.path.with_suffix(".safetensors")
        try:
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.sha256:
                raise ArtefactError(
                    f"{file} is not the file {self.path.name} describes (its hash differs). Make it again."
                )
            return {name: tensor.to(device) for name, tensor in load(content).items()}
        except OSError as error:
            raise ArtefactError(f"cannot read {file}: {error.strerror}. Make the {self.kind} again.") from None
        except SafetensorError as error:
            raise ArtefactError(f"{file} is damaged: {error}. Make the {self.kind} again.") from None


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
        ArtefactError: missing, not JSON, of another kind or format, or a pickle.
    """
    if path.suffix in PICKLES:
        raise ArtefactError(
            f"{path} may be a pickle, which can run code when it is read; the harness reads safetensors with a JSON "
            f"beside them only. Give the .json that `harness train` wrote."
        )
    path = json_path(path)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"cannot read the {kind} {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ArtefactError(f"{path} is not JSON. Give the .json that `harness train` wrote.") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise ArtefactError(f"{path} is not an artefact of format {FORMAT} (it says {found!r}). Make it again.")
    if "sha256" not in facts:
        raise ArtefactError(f"{path} does not say which tensors belong to it (sha256). Make it again.")
    if facts.pop("kind", None) != kind:
        raise ArtefactError(f"{path} holds no {kind}. Give the .json that `harness train` wrote for it.")
    facts.pop("format")
    return Artefact(kind, path, facts, facts.pop("sha256"))
