"""Decoders in processes of their own, one at a time: token ids in, greedy tokens and their times out.

Each of ``Worker``'s processes loads one model and then waits for its standard input. Times are taken inside, so that
pipes and JSON are no part of them; memory and processor time are the process's own. Two of them at work at once
would wait for each other's threads at every matrix: whoever measures asks one after the other, and looks at
``idle_share``.

``http PORT [WAY]`` behind the arguments of a worker's module makes it a server instead, for the strategy ``endpoint``:
``POST /completion`` streams greedy tokens in the words of llama.cpp's server, decoded in one of the worker's ways.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
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
        decode: prompt, number of tokens, in which of its ways, and whom to tell each token as soon as it is known →
            greedy tokens with their times.
        choices: prompt and text → the most probable token at every place of the text, given what is before it.
        rest: called before it waits.
        text: what a server needs besides; ``None`` of one that is no peer.
    """

    facts: dict[str, Any]
    decode: Callable[[list[int], int, str, Callable[[int], None]], Decoded]
    choices: Callable[[list[int], list[int]], list[int]] | None = None
    rest: Callable[[], None] = lambda: None
    text: Spelling | None = None


@dataclass(frozen=True)
class Spelling:
    """How a peer reads and writes text.

    Attributes:
        tokens: of a prompt, with those that the model wants around it.
        spell: the text of a completion's tokens, with U+FFFD at its end where that is inside a character.
        ends: whether a token ends a completion.
    """

    tokens: Callable[[str], list[int]]
    spell: Callable[[list[int]], str]
    ends: Callable[[int], bool]


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


def serve(load: Callable[..., Decoder], refusals: type[Exception] | tuple[type[Exception], ...]) -> None:
    """Be a worker's process: load, say so, and answer until standard input ends; or be a server.

    Args:
        load: given the module's arguments, returns the decoder.
        refusals: what it raises when the model cannot be had, as a reason.
    """
    arguments = sys.argv[1:]
    if HTTP in arguments:
        place = arguments.index(HTTP)
        server = http_server(load(*arguments[:place]), int(arguments[place + 1]), " ".join(arguments[place + 2 :]))
        print(server.server_port, flush=True)
        server.serve_forever()
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    try:
        decoder = load(*arguments)
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
            answer = asdict(decoder.decode(asked["prompt"], asked["count"], asked["way"], lambda _: None))


HTTP = "http"


class _OverError(Exception):
    """A completion is over, or nobody listens any more."""


def http_server(decoder: Decoder, port: int, way: str) -> HTTPServer:
    """Return a server of completions that decodes one at a time, in one of the decoder's ways."""
    spelling = decoder.text
    assert spelling is not None, decoder.facts

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            made, sent, ending = list[int](), "", "limit"

            def known(token: int) -> None:
                nonlocal sent, ending
                made.append(token)
                if spelling.ends(token):
                    ending = "eos"
                    raise _OverError
                text = spelling.spell(made)
                piece = "" if text.endswith("\ufffd") else text.removeprefix(sent)
                self._send({"content": piece, "stop": False, "tokens_predicted": len(made)})
                sent += piece

            with suppress(_OverError):
                decoder.decode(spelling.tokens(body["prompt"]), body["n_predict"], way, known)
            with suppress(_OverError):
                last = {"content": "", "stop": True, "stop_type": ending, "tokens_predicted": len(made)}
                self._send({**last, "model": decoder.facts["model"]})
            decoder.rest()

        def _send(self, event: dict[str, object]) -> None:
            try:
                waiting, _, _ = select.select([self.connection], [], [], 0)
                if waiting and not self.connection.recv(1, socket.MSG_PEEK):  # it hung up: the text was enough for it
                    raise _OverError
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            except OSError:
                raise _OverError from None

    return HTTPServer(("127.0.0.1", port), Handler)


@contextmanager
def serving(module: str, *arguments: str, way: str = "", port: int = 0) -> Iterator[str]:
    """The URL of a worker that is a server, until the block ends.

    Args:
        module: of the worker.
        arguments: its own.
        way: in which it decodes.
        port: of its own, or any.
    """
    command = [sys.executable, "-m", module, *arguments, HTTP, str(port), *way.split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = process.stdout.readline().strip()
            assert found, f"{module} ended"
            yield f"http://127.0.0.1:{found}/completion"
        finally:
            process.kill()
