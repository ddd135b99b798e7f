"""A model with everything trained for it, as a plain transformers folder that needs no harness to be read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, StoreError
from harness.host.libraries import library_border
from harness.models.artefacts import look_into, look_through
from harness.models.facts import FILE, FORMAT, MERGED, PARTS, Exported
from harness.models.folder import fingerprint_of_folder, quiet
from harness.models.model import ResolvedModel
from harness.models.trained import belongs_to


def export(
    resolved: ResolvedModel,
    folder: Path,
    card: Callable[[Exported, Mapping[str, Any]], str],
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a model's weights, adapter merged, with tokenizer, exits and model card; whole or not at all."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty. Name a folder that does not exist yet.")
    if resolved.tokenizer.stand_in:
        raise ConfigError(f"{resolved.info.name} has no tokenizer of its own, which an exported folder needs.")
    module, source = resolved.module(note)
    note(f"writing {source}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet(), library_border(f"cannot write {folder}", "Make room, or name another folder.", StoreError):
            module.config.name_or_path = resolved.tokenizer.wrapped.name_or_path = resolved.info.name  # not a path
            module.save_pretrained(building)
            resolved.tokenizer.wrapped.save_pretrained(building)
        _copy_artefacts(resolved, building / PARTS)
        exported = _facts(resolved, fingerprint_of_folder(building))
        (building / FILE).write_text(exported.model_dump_json(indent=1) + "\n", encoding="utf-8")
        told = [building / PARTS / name for name in (f"{MERGED}.json", "tuning.json")]  # of weights tuned as a whole
        read = next((facts for file in told if (facts := look_into(file))), {})
        (building / "README.md").write_text(card(exported, read), encoding="utf-8")
        building.chmod(0o755)
        building.replace(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return exported


def _facts(resolved: ResolvedModel, files: str) -> Exported:
    info, before = resolved.info, resolved.exported
    if resolved.adapter is not None:
        merged: str | None = resolved.adapter.sha256
    else:
        merged = before.adapter_sha256 if before is not None else None
    return Exported(
        format=FORMAT,
        base_model=before.base_model if before is not None else info.name,
        published=before.published if before is not None else resolved.spec.published,
        base_fingerprint=info.base_fingerprint,
        fingerprint=info.fingerprint,
        files=files,
        weights="tuned" if info.weights == "tuned" else "pretrained",
        adapter_sha256=merged,
        exit_points=list(info.exit_points),
        exit_head=info.exit_head,
        num_layers=info.num_layers,
        dtype=info.dtype,
    )


def _copy_artefacts(resolved: ResolvedModel, target: Path) -> None:
    """Copy what was trained for the weights, and of the adapter its facts alone: it is in the weights."""
    target.mkdir()
    for file, facts in _belonging(resolved):
        index = facts.get("ngrams")
        if resolved.adapter is not None and file == resolved.adapter.path:
            text = json.dumps({**facts, "kind": MERGED}, indent=1) + "\n"
            (target / f"{MERGED}.json").write_text(text, encoding="utf-8")
            parts = []
        else:
            shutil.copyfile(file, target / file.name)
            parts = [file.with_suffix(".safetensors")]
        if isinstance(index, dict):
            parts.append(file.parent / Path(str(index.get("file"))).name)
        for part in parts:
            if part.is_file():
                shutil.copyfile(part, target / part.name)


def _belonging(resolved: ResolvedModel) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the artefacts of exactly these weights, or of all weights tuned from their base; the first of each name."""
    info, names = resolved.info, set[str]()
    for file, facts in look_through(map(Path, info.artefacts)):
        ours = facts.get("base_fingerprint", facts.get("model_fingerprint")) == info.base_fingerprint
        if facts.get("kind") in ("adapter", MERGED):
            wanted = ours and (facts["kind"] == MERGED or (resolved.adapter and file == resolved.adapter.path))
        elif facts.get("kind") == "shortcut" and info.exit_head == "shared":
            wanted = False  # a run of the folder would take it
        else:
            wanted = belongs_to(facts) == info.fingerprint if "model_fingerprint" in facts else ours
        if wanted and file.name not in names:
            names.add(file.name)
            yield file, facts
