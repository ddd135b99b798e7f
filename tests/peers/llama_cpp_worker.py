"""A worker with llama.cpp: ``python -m tests.peers.llama_cpp_worker FOLDER FILE THREADS POSITIONS``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.peers.llama_cpp_library import Context, Library
from tests.peers.workers import Decoded, Decoder, serve


def load(folder: Path, file: Path, threads: int, positions: int) -> Decoder:
    library = Library(folder)
    context = Context(library, file, threads, positions)

    def decode(prompt: list[int], count: int, _: str) -> Decoded:
        context.clear()
        made = Decoded([], [])
        given, start = prompt, time.perf_counter()
        while len(made.token_ids) < count:
            token = context.choose(given)
            made.times_s.append(time.perf_counter() - start)
            made.token_ids.append(token)
            given = [token]
        return made

    def choices(prompt: list[int], text: list[int]) -> list[int]:
        context.clear()
        return [context.choose(given) for given in (prompt, *([token] for token in text[:-1]))]

    return Decoder(library.facts(), decode, choices, context.rest)


if __name__ == "__main__":
    serve(lambda: load(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])), RuntimeError)
