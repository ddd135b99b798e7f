"""Runs cases in a warm process, and says what every one of them owes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .warm import ACCEPTED

LIMIT_S = 30.0
"""Time of one case. The slowest honest ones take two seconds on an idle core."""

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and what turns the direction of text round."""

DONE, REFUSED = (0, ACCEPTED), 2


@dataclass(frozen=True)
class Ran:
    """What became of a case: exit code, negative where a signal ended it, and whether its time was up."""

    argv: tuple[str, ...]
    code: int
    out: bytes
    err: bytes
    killed: bool = False

    def __str__(self) -> str:
        said = "\n".join(f"--- {name}\n{text[:6000].decode('utf-8', 'backslashreplace')}" for name, text in self._said)
        return f"harness {shlex.join(map(ascii, self.argv))}\nexit code {self.code}\n{said}"

    @property
    def _said(self) -> list[tuple[str, bytes]]:
        return [("stdout", self.out), ("stderr", self.err)]

    @property
    def refused(self) -> bool:
        """Whether it was refused; fails unless it ended as every case must."""
        return self.judge() == REFUSED

    @property
    def text(self) -> str:
        """Its standard output."""
        return self.out.decode("utf-8")

    def judge(self, *, codes: Sequence[int] = (), refusals: int = 1) -> int:
        """Return the exit code, having checked what every case owes."""
        assert b"Timeout (" not in self.err, f"hangs\n{self}"
        assert not self.killed, f"hangs, and is deaf\n{self}"
        assert self.code >= 0, f"dies of signal {-self.code}\n{self}"
        assert self.code in (*DONE, REFUSED, *codes), f"ends with an undocumented exit code\n{self}"
        out, err = (text.decode("utf-8") for _, text in self._said)  # undecodable: fails
        assert "Traceback (most recent call last)" not in err, f"shows a traceback\n{self}"
        for text in (out, err):
            raw = RAW.search(text)
            assert raw is None, f"lets {raw[0]!r} through\n{self}"
        lines = err.split("\n")
        refused = [number for number, line in enumerate(lines) if line.startswith("error:")]
        if self.code == REFUSED:
            assert 1 <= len(refused) <= refusals, f"is refused in {len(refused)} lines\n{self}"
            after = lines[refused[0] + 1 :] if refusals == 1 else []
            assert all(not line or line.startswith("  ") for line in after), f"goes on after its refusal\n{self}"
        elif self.code in DONE:
            assert not refused, f"is refused and goes on\n{self}"
        return self.code


class Warm:
    """A warm process, see :mod:`warm`; a context manager."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "RAYON", "ARROW")}
        plain = {"COLUMNS": "100", "NO_COLOR": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=scratch,
            env={**os.environ, **threads, **plain},
        )
        self._answer()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(
        self,
        *argv: object,
        cwd: Path,
        until: str | None = None,
        door: str = "command",
        kill_after_s: float | None = None,
        limit_s: float = LIMIT_S,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a case; with ``until`` it may end as accepted before ``weights`` or when it has ``decoded``."""
        assert self._process.stdin is not None
        texts = [str(argument) for argument in argv]
        out, err = self._scratch / "out", self._scratch / "err"
        for file in (out, err):
            file.unlink(missing_ok=True)
        request = {"argv": texts, "cwd": str(cwd), "until": until, "door": door, "out": str(out), "err": str(err)}
        request |= {"limit_s": limit_s, "kill_after_s": limit_s + 5 if kill_after_s is None else kill_after_s}
        request |= {"env": None if env is None else dict(env)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Ran(tuple(texts), answer["code"], _read(out), _read(err), answer["killed"])

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the warm process has ended with {self._process.wait()}"
        answer: dict[str, object] = json.loads(line)
        return answer


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""  # killed before it opened it
