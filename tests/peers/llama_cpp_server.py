"""llama.cpp behind HTTP: ``python -m tests.peers.llama_cpp_server FOLDER FILE THREADS POSITIONS``.

The npm package ships llama.cpp's libraries and not its server, so the few lines of HTTP are ours: ``POST /completion``
streams greedy tokens in the server's own words. Reading the prompt, tokens, their text and every product are
llama.cpp's. The first line of standard output is the port.
"""

from __future__ import annotations

import codecs
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.peers.llama_cpp_library import Context, Library

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(command: tuple[str, ...]) -> Iterator[str]:
    """The URL of a server until the block ends.

    Args:
        command: what :func:`tests.peers.llama_cpp.command` returns; its module is replaced by this one.
    """
    module = [sys.executable, "-m", "tests.peers.llama_cpp_server", *command[1:]]
    process = subprocess.Popen(module, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "llama.cpp's server ended"
        yield f"http://127.0.0.1:{port}/completion"
    finally:
        process.kill()
        process.wait()


def handler(context: Context) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            context.clear()
            given, made = context.tokens(body["prompt"]), 0
            text, ending = codecs.getincrementaldecoder("utf-8")("replace"), "limit"
            while made < body["n_predict"]:
                token = context.choose(given)
                given, made = [token], made + 1
                if context.ends(token):
                    ending = "eos"
                    break
                self._send({"content": text.decode(context.piece(token)), "stop": False, "tokens_predicted": made})
            last = {"content": "", "stop": True, "stop_type": ending, "tokens_predicted": made, "model": FILE.stem}
            self._send(last)
            context.rest()

        def _send(self, event: dict[str, object]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    return Handler


if __name__ == "__main__":
    FOLDER, FILE = Path(sys.argv[1]), Path(sys.argv[2])
    library = Library(FOLDER)
    server = HTTPServer(("127.0.0.1", 0), handler(Context(library, FILE, int(sys.argv[3]), int(sys.argv[4]))))
    print(server.server_address[1], flush=True)
    server.serve_forever()
