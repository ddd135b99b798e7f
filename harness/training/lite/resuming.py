"""What a training that is stopped and goes on finds in its folder: checkpoints, what it began with, its log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import TrainingError
from harness.host.atomic_files import replace_files

__all__ = ["begin_log", "check_beginning", "forget_steps_after", "last_checkpoint"]

BEGINNING = "begun.json"


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the whole checkpoint with the most steps; one that a kill or a full disk cut short does not count."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in checkpoints.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdecimal() and _is_whole(path)
    ]
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether the Trainer got to the file that it writes last, and the weights can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "model.safetensors", "pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all((checkpoint / name).is_file() for name in ("optimizer.pt", "scheduler.pt"))


def check_beginning(checkpoints: Path, began: Mapping[str, Any], resume: bool) -> None:
    """Note what a training begins with beside its checkpoints; one that is resumed must be given the same.

    Args:
        checkpoints: folder of the checkpoints.
        began: flag → what it stands for.
        resume: whether the training goes on.

    Raises:
        TrainingError: it began with something else, or the note cannot be read.
    """
    file, ours = checkpoints / BEGINNING, json.loads(json.dumps(began))
    if not resume:
        checkpoints.mkdir(exist_ok=True)
        replace_files({file: f"{json.dumps(ours, indent=1)}\n".encode()})
        return
    theirs = _read_note(file)
    if theirs is None:  # of a version that kept none
        return
    for flag, now in ours.items():
        then = theirs.get(flag) if isinstance(theirs, dict) else None
        if then != now:
            raise TrainingError(
                f"the checkpoints in {checkpoints} began with {flag} {_short(then)}, and now it is {_short(now)}. "
                "Resume with the flags it began with, or give another --out."
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _read_note(file: Path) -> Any:
    """Return what a JSON file of the training holds; ``None`` where there is none.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"{file} cannot be read ({error}). Begin again with another --out, or remove {file.parent}."
        ) from None


def begin_log(log: Path, before: Path | None) -> None:
    """Begin a log of steps with the one of an earlier tuning, where there is one, or empty."""
    with suppress(FileNotFoundError):
        if before is None:
            log.unlink()
        elif before.resolve() != log.resolve():
            log.unlink(missing_ok=True)
            replace_files({log: before.read_bytes()})


def forget_steps_after(step: int, log: Path) -> None:
    """Drop lines of steps that are done again: after a kill, the log is ahead of the checkpoint."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError, TypeError, KeyError):  # a kill breaks a line off
            kept += [line] if json.loads(line)["step"] <= step else []
    replace_files({log: "".join(kept).encode()})
