"""A command beside servers of other engines: ``python -m tests.peers.servers MODEL COMMAND…``.

``docs/scripts/results/rivals.toml`` asks them, at the ports of :data:`PEERS`. Each has two threads, and sleeps while it
is not asked. The exit code is the command's, or 1 where llama.cpp cannot be had.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from harness.config.model import DEFAULT_MODEL
from harness.models.source import find_spec
from tests.peers.llama_cpp import PeerAbsentError, command, quantised
from tests.peers.workers import serving

THREADS, POSITIONS = 2, 2048
PEERS = {
    8101: ("llama.cpp", "Q8_0", ""),
    8102: ("llama.cpp", "Q8_0", "ngram-simple 12 48"),
    8103: ("transformers", "float32", ""),
    8104: ("transformers", "float32", "lookup"),
    8105: ("llama.cpp", "Q4_0", ""),
}
"""Port → engine, weights and way: of the default model, which llama.cpp requantises from its file. Of another there are
the first two, on its file as it is. The look-up's sizes are those of llama.cpp's server, the fastest of five tried."""


def main(model: str, *beside: str) -> int:
    """Return the exit code."""
    file = find_spec(model).gguf
    if file is None:
        print(f"{model} is no GGUF file", file=sys.stderr)
        return 2
    default = model == DEFAULT_MODEL
    with ExitStack() as servers:
        for port, (engine, weights, way) in list(PEERS.items())[: None if default else 2]:
            if engine == "llama.cpp":
                worker = command(quantised(file, weights) if default else file, THREADS, POSITIONS)
            else:
                worker = ("tests.peers.engine_worker", "generate", str(THREADS))
            servers.enter_context(serving(*worker, way=way, port=port))
        return subprocess.run(beside, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except PeerAbsentError as absent:
        sys.exit(f"nothing is measured beside llama.cpp: {absent}")
