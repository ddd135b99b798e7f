"""Files from which a stopped training resumes: checkpoints, what it began with, its log."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import TrainingError
from harness.host.atomic_files import replace_files
from harness.host.foreign_files import (
    LARGEST_LOG_BYTES,
    DocumentError,
    parse_json,
    read_bytes,
    read_json,
    real_path,
    require_regular,
)

__all__ = ["PROCESSES", "begin_log", "check_beginning", "forget_steps_after", "last_checkpoint"]

BEGINNING = "begun.json"
PROCESSES = "a number of processes of"


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the whole checkpoint with the most steps; one that a kill or a full disk cut short does not count."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in checkpoints.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name) and _is_whole(path)
    ]
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether the Trainer got to the file that it writes last, and the weights can be read."""
    from safetensors import SafetensorError, safe_open
    from transformers import TrainerState

    try:
        state = TrainerState(**read_json(checkpoint / "trainer_state.json", finite=False))  # a loss may be NaN
        if type(state.global_step) is not int or not isinstance(state.log_history, list):
            return False
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
            require_regular(checkpoint / name)
        with safe_open(checkpoint / "model.safetensors", "pt"):
            return True
    except (OSError, ValueError, TypeError, SafetensorError):
        return False


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
        unsaid = 1 if flag == PROCESSES else None  # older versions did not say it
        then = theirs.get(flag, unsaid) if isinstance(theirs, dict) else None
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
        return read_json(file)
    except FileNotFoundError:
        return None
    except (OSError, DocumentError) as error:
        why = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"{file} cannot be read ({why}). Begin again with another --out, or remove {file.parent}."
        ) from None


def begin_log(log: Path, before: Path | None) -> None:
    """Begin a log of steps with the one of an earlier tuning, where there is one, or empty."""
    with suppress(FileNotFoundError):
        if before is None:
            log.unlink()
        elif real_path(before) != real_path(log):
            log.unlink(missing_ok=True)
            try:
                replace_files({log: read_bytes(before, LARGEST_LOG_BYTES)})
            except FileNotFoundError:
                pass
            except OSError as error:
                raise TrainingError(f"cannot copy the log {before}: {error.strerror}. Remove it.") from None


def forget_steps_after(step: int, log: Path) -> None:
    """Drop lines of steps that are done again: after a kill, the log is ahead of the checkpoint."""
    if not log.exists():
        return
    kept = []
    try:
        lines = read_bytes(log, LARGEST_LOG_BYTES).splitlines(keepends=True)
    except OSError as error:
        raise TrainingError(f"cannot read {log}: {error.strerror}. Remove it, or give another --out.") from None
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):  # a kill breaks a line off
            kept += [line] if parse_json(line)["step"] <= step else []
    replace_files({log: b"".join(kept)})
