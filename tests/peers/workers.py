"""Decoders in processes of their own, one at a time: token ids in, greedy tokens and their times out.

Each of ``Worker``'s processes loads one model and then waits for its standard input. Times are taken inside, so that
pipes and JSON are no part of them; memory and processor time are the process's own. Two of them at work at once
would wait for each other's threads at every matrix: whoever measures asks one after the other, and looks at
``idle_share``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
READY_S, ANSWER_S = 300, 300
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Decoded:
    """Tokens, and when each was known: seconds since the prompt was given.

    Attributes:
        counts: what was run for them, by name, where that was counted.
    """

    token_ids: list[int]
    times_s: list[float]
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """What a worker's process can do.

    Attributes:
        facts: about it, for whoever prints.
        decode: prompt, number of tokens, and in which of its ways → greedy tokens with their times.
        choices: prompt and text → the most probable token at every place of the text, given what is before it.
        rest: called before it waits.
    """

    facts: dict[str, Any]
    decode: Callable[[list[int], int, str], Decoded]
    choices: Callable[[list[int], list[int]], list[int]] | None = None
    rest: Callable[[], None] = lambda: None


class WorkerFailedError(Exception):
    """A worker's process could not load its model, or ended; the message is what it said."""


class Worker:
    """A process that decodes.

    Args:
        module: run with ``python -m``; it calls :func:`serve`.
        arguments: of it.

    Attributes:
        facts: what its decoder says of itself.

    Raises:
        WorkerFailedError: it cannot load its model.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip
        self._idle_cpu_s = self._idle_s = 0.0
        self._rested: tuple[float, float] | None = None
        self.facts = self._read(READY_S)["facts"]

    def decode(self, prompt: Sequence[int], count: int, way: str = "") -> Decoded:
        """Return greedy tokens behind a prompt, never stopping early, in one of the decoder's ways."""
        return Decoded(**self._ask({"prompt": list(prompt), "count": count, "way": way}))

    def choices(self, prompt: Sequence[int], text: Sequence[int]) -> list[int]:
        """Return the most probable token at every place of a text."""
        chosen: list[int] = self._ask({"prompt": list(prompt), "text": list(text)})["choices"]
        return chosen

    @property
    def resident_bytes(self) -> int:
        """Memory of the process, pages of mapped files that it has read included."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    @property
    def idle_share(self) -> float:
        """Processor seconds per second between its answers and the next questions."""
        return self._idle_cpu_s / self._idle_s if self._idle_s else 0.0

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        if self._rested is not None:
            cpu_s, at_s = self._rested
            self._idle_cpu_s += self._cpu_s() - cpu_s
            self._idle_s += time.perf_counter() - at_s
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._read(ANSWER_S)
        self._rested = self._cpu_s(), time.perf_counter()
        return answer

    def _read(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Timer(limit_s, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        late.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": self._last_words()}
        if "failed" in answer:
            raise WorkerFailedError(answer["failed"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return lines[-1] if lines else f"ended with code {self._process.returncode}"

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS  # user and system, the process's threads together


def serve(load: Callable[[], Decoder], refusals: type[Exception] | tuple[type[Exception], ...]) -> None:
    """Be a worker's process: load, say so, and answer until standard input ends.

    Args:
        load: returns the decoder.
        refusals: what it raises when the model cannot be had, as a reason.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    try:
        decoder = load()
    except refusals as refused:
        print(json.dumps({"failed": str(refused).splitlines()[0]}), file=answers, flush=True)
        return
    answer: dict[str, Any] = {"facts": decoder.facts}
    while True:
        decoder.rest()
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        asked = json.loads(line)
        if "text" in asked:
            assert decoder.choices is not None, decoder.facts
            answer = {"choices": decoder.choices(asked["prompt"], asked["text"])}
        else:
            answer = asdict(decoder.decode(asked["prompt"], asked["count"], asked["way"]))
