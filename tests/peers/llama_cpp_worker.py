"""A worker with llama.cpp: ``python -m tests.peers.llama_cpp_worker FOLDER FILE THREADS POSITIONS``.

The npm package ships llama.cpp's libraries and not its server. Reading prompts, tokens, their text, every product and
the drafts of its look-up are llama.cpp's; that a draft is verified as its server verifies it is ours. Its ways are
greedy decoding and ``ngram-simple N M``, what its server calls ``--spec-type ngram-simple`` with its sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.peers.llama_cpp_library import Context, Library
from tests.peers.workers import Decoded, Decoder, Spelling, serve


def load(folder: str, file: str, threads: str, positions: str) -> Decoder:
    library = Library(Path(folder))
    context = Context(library, Path(file), int(threads), int(positions))

    def decode(prompt: list[int], count: int, way: str, known: Callable[[int], None]) -> Decoded:
        sizes = [int(size) for size in way.split()[1:]]
        context.clear()
        made, start = Decoded([], [], {"drafted": 0, "accepted": 0}), time.perf_counter()
        chosen = [context.choose(prompt)]
        while True:
            for token in chosen:
                made.times_s.append(time.perf_counter() - start)
                made.token_ids.append(token)
                known(token)
            left = count - len(made.token_ids)
            if not left:
                return made
            written = [*prompt, *made.token_ids]
            drafted = library.look_up(written, *sizes)[: left - 1] if sizes else []
            if not drafted:
                chosen = [context.choose(written[-1:])]
                continue
            chosen = context.choices([written[-1], *drafted])
            stood = next((n for n, pair in enumerate(zip(drafted, chosen, strict=False)) if pair[0] != pair[1]), None)
            stood = len(drafted) if stood is None else stood
            chosen = chosen[: stood + 1]
            context.forget(len(written) + stood)
            made.counts["drafted"] += len(drafted)
            made.counts["accepted"] += stood

    def choices(prompt: list[int], text: list[int]) -> list[int]:
        context.clear()
        return [context.choose(given) for given in (prompt, *([token] for token in text[:-1]))]

    facts = {**library.facts(), "model": Path(file).stem}
    return Decoder(facts, decode, choices, context.rest, Spelling(context.tokens, context.spell, context.ends))


if __name__ == "__main__":
    serve(load, RuntimeError)
