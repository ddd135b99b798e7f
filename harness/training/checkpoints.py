"""Files and signals of a training that goes on where it stopped: its checkpoints, its log, and Ctrl-C as a request.

Checkpoints are safetensors and JSON, nothing pickled, and never those of another training.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.errors import ResumeError
from harness.host.files import LARGEST_LOG_BYTES, parse_json, read_bytes, refusing, replace_files
from harness.models.artefacts import Artefact, look_into, read_artefact, write_artefact

_STEPS = re.compile(r"step-\d{1,18}", re.ASCII)


class Checkpoints:
    """The checkpoints of one training in a folder; the last two stay.

    ``kind`` is that of the artefact that is trained; ``facts``, JSON-able, say what is learned and how: a run with
    other ones does not resume from them.
    """

    def __init__(self, folder: Path, kind: str, facts: Mapping[str, Any]) -> None:
        self._folder, self._kind = folder, f"{kind}-checkpoint"
        self._facts: dict[str, Any] = json.loads(json.dumps(dict(facts)))
        self._written: list[Path] = []

    def latest(self) -> Path | None:
        """Return the JSON of the one with the most steps; while training, of those this run has written."""
        found = self._written or (path for path in self._folder.glob("step-*.json") if _STEPS.fullmatch(path.stem))
        return max(found, key=lambda path: int(path.stem.removeprefix("step-")), default=None)

    def unfinished(self) -> Path | None:
        """Return the latest if it is of this training and short of the steps that it was on its way to."""
        path = self.latest()
        facts = {} if path is None else look_into(path)
        is_short = facts.get("steps", 0) < facts.get("goal", 0)
        return path if is_short and facts.get("training") == self._facts else None

    def write(self, steps: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write one, whole or not at all: all that going on takes. Remove all but it and the one before."""
        path = self._folder / f"step-{steps:09d}.json"
        write_artefact(path, self._kind, tensors, {"training": self._facts, "steps": steps, **facts})
        self._written = [*(kept for kept in self._written[-1:] if kept != path), path]
        for old in self._folder.glob("step-*"):
            if old.with_suffix(".json") not in self._written:
                old.unlink()

    def read(self) -> Artefact:
        """Return the latest, with ``steps`` and what else was written among its facts.

        Raises:
            TrainingError: there is none, or it is of another training; gives both values.
        """
        path = self.latest()
        if path is None:
            raise ResumeError(f"{self._folder} holds no checkpoint to resume from. Omit --resume to begin.")
        found = read_artefact(path, self._kind)
        for name, ours in self._facts.items():
            theirs = found.facts.get("training", {}).get(name)
            if theirs != ours:
                raise ResumeError(
                    f"{path} was trained with {name.replace('_', ' ')} {theirs}, now it is {ours}. Omit --resume "
                    "to begin anew."
                )
        self._written = [path]
        return found


def cut_log(log: Path, keeps: Callable[[dict[str, Any]], bool], source: Path | None = None) -> None:
    """Keep some lines of a log of JSON lines, or of another ``source``, of those that a kill left whole.

    A log is ahead of its checkpoint, whose steps come again. It is made, with its folder, where it is missing.
    """
    source = source or log
    kept = []
    with refusing(source, ResumeError, "Remove it, or give another --out."):
        lines = read_bytes(source, LARGEST_LOG_BYTES).splitlines() if source.exists() else []
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            kept += [line + b"\n"] if keeps(parse_json(line)) else []
    log.parent.mkdir(parents=True, exist_ok=True)
    replace_files({log: b"".join(kept)})


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; the second one stops at once. Only in the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
