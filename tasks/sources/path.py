"""Rows from an explicit path: a file, a dataset folder in hub layout, or a folder that holds those.

Where a folder holds several, the first of these is taken, ``CONFIG`` and ``SPLIT`` being those of the task:

1. ``CONFIG/SPLIT-*.parquet`` or ``CONFIG/SPLIT.parquet`` — the folder is a dataset in hub layout;
2. the same below a folder with the dataset's name;
3. ``codexglue_line/CONFIG.jsonl``, then ``CONFIG.jsonl``, which have no splits: not where ``validation`` is asked for,
   and not where the dataset lies there with other splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import DataError, did_you_mean
from harness.host.foreign_files import read_bytes
from tasks.rows import Rows
from tasks.sources import HubDataset, content_of
from tasks.sources.jsonl import JsonLines
from tasks.sources.parquet import parquet_rows

__all__ = ["FORMS", "open_path"]

_LINE_FOLDER = "codexglue_line"
_OFFICIAL = re.compile(r"\bofficial\b(?:\s+\S+){0,2}\s+dev\s+rows\b", re.IGNORECASE)
_LARGEST_README = 1 << 20
FORMS = "a JSONL file of {id, input, gt} or {id, code} rows, a dataset folder in hub layout, or a folder of those"


def open_path(source: str, dataset: HubDataset) -> Rows:
    """Return the rows a path holds for one dataset.

    Args:
        source: what the user gave as ``--source``.
        dataset: names the folder, the configuration and the split to look for.

    Raises:
        DataError: nothing there, nothing usable there, or the file cannot be read.
    """
    if not source:
        raise DataError(f"--source is empty. Give {FORMS}; or --source embedded.")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _open_folder(path, dataset)
        if path.is_file():
            return _open_files([path], dataset)
        exists, leads_nowhere = path.exists(), path.is_symlink()
    except OSError as error:
        raise DataError(f"cannot read --source '{source}': {error.strerror or error}.") from None
    except RuntimeError:  # what pathlib says of ~nobody
        raise DataError(f"--source '{source}': there is no such user. Give {FORMS}; or --source embedded.") from None
    if exists:
        raise DataError(f"--source '{source}' is neither a file nor a folder. Give {FORMS}.")
    if leads_nowhere:
        raise DataError(f"--source '{source}' is a link to itself, or to what does not exist. Give {FORMS}.")
    hint = did_you_mean(source, ("embedded", "hub"))
    raise DataError(f"--source '{source}' does not exist.{hint} Give {FORMS}; or --source embedded.")


def _open_folder(folder: Path, dataset: HubDataset) -> Rows:
    for root in (folder, folder / dataset.folder):
        if files := _split_files(root / dataset.config, dataset.split):
            return _open_files(files, dataset)
    if not dataset.single_split and _has_splits(folder, dataset):  # rows of no split would be those of another one
        raise DataError(_not_found(folder, dataset))
    for parent in (folder / _LINE_FOLDER, folder):
        if (file := parent / f"{dataset.config}.jsonl").is_file():
            if dataset.split == "validation":
                raise DataError(
                    f"{folder} has no split '{dataset.split}': {file.name} holds the rows of all. Give another "
                    f"--split, or --source {file} to take them whole."
                )
            return _open_files([file], dataset)
    raise DataError(_not_found(folder, dataset))


def _open_files(files: Sequence[Path], dataset: HubDataset) -> Rows:
    first, content = files[0], {"content": content_of(files)}
    if first.suffix == ".parquet":
        in_layout = first.parent.name == dataset.config
        home = first.parent.parent if in_layout else first.parent
        label = _label(home.name if in_layout else first.name, home, in_layout)
        detail = {"path": str(home if in_layout else first), "config": dataset.config, "split": dataset.split}
        return parquet_rows(files, label, (detail if in_layout else {"path": str(first)}) | content)
    label = _label(first.name, first.parent, first.stem == dataset.config)
    return JsonLines(first, label, {"path": str(first), **content})


def _split_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.parquet")) or [
        file for file in [folder / f"{split}.parquet"] if file.is_file()
    ]


def _has_splits(folder: Path, dataset: HubDataset) -> bool:
    return any(any((root / dataset.config).glob("*.parquet")) for root in (folder, folder / dataset.folder))


def _label(name: str, home: Path, is_listed: bool) -> str:
    official = is_listed and any(_OFFICIAL.search(text.replace("*", "")) for text in _descriptions(home.absolute()))
    return f"official CodeXGLUE dev rows (path: {name})" if official else f"path: {name}"


def _descriptions(home: Path) -> Iterator[str]:
    """Yield the README of a data folder, and the parent's when it speaks of that folder by name."""
    for folder, needle in ((home, ""), (home.parent, f"{home.name}/")):
        with suppress(OSError):  # a folder need not have one
            text = read_bytes(folder / "README.md", _LARGEST_README).decode("utf-8", "replace")
            if needle in text:
                yield text


def _not_found(folder: Path, dataset: HubDataset) -> str:
    wanted = f"'{dataset.config}' rows, split '{dataset.split}'"
    for root in (folder, folder / dataset.folder):
        if found := sorted(file.relative_to(root).as_posix() for file in root.glob("*/*.parquet")):
            listing = ", ".join(found[:6]) + (", …" if len(found) > 6 else "")
            return f"{root} has no {wanted} ({dataset.config}/{dataset.split}-*.parquet); it has {listing}."
    found = sorted(file.name for folder in (folder, folder / _LINE_FOLDER) for file in folder.glob("*.jsonl"))
    listing = f" It has {', '.join(found[:6])}." if found else ""
    return (
        f"{folder} holds no {wanted}: neither {dataset.folder}/{dataset.config}/{dataset.split}-*.parquet nor "
        f"{_LINE_FOLDER}/{dataset.config}.jsonl.{listing} Give {FORMS}; or --source embedded."
    )
