"""A process that has imported everything once and forks for every case: what one breaks, no other sees.

Reads one JSON request a line and answers each with a line. A case is the command as a user starts it, with its own exit
code, file descriptors and bounds on time and memory; only the seconds of importing torch and of measuring the
machine are spared. Forks hold one thread, so nothing of the parent's can be missing in a child.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

ACCEPTED = 99
"""Exit code of a case that came as far as was asked for, and was ended there."""

PACKAGES = ("harness", "strategies", "tasks", "reports")
LAZY = (
    *("codebleu", "datasets", "gguf", "matplotlib.figure", "pandas", "plotly.graph_objects", "pyarrow.parquet"),
    *("rouge_score.rouge_scorer", "sacrebleu", "safetensors.torch", "scipy.stats", "tree_sitter_python"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers"),
)
"""What the harness imports when it is needed; what is not installed is left to the case that needs it."""

ROOM_BYTES = 3 << 30
"""Memory that a case may take beyond what the parent has: a hundred times what a tiny model needs."""
LARGEST_FILE_BYTES = 1 << 28


def main() -> None:
    """Answer requests until the other side closes."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    _import_everything()
    gc.collect()
    gc.freeze()
    print("{}", file=replies, flush=True)
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _case(request)
        with contextlib.suppress(OSError):  # it may have done so itself, or be gone
            os.setpgid(child, child)
        print(json.dumps(_outcome(child, request["kill_after_s"])), file=replies, flush=True)


def _import_everything() -> None:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)
    for name in LAZY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _outcome(child: int, kill_after_s: float) -> dict[str, Any]:
    """Wait for a case; kill it, and whatever it started, when its time is up."""
    began = time.monotonic()
    killed = False
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if not killed and time.monotonic() - began > kill_after_s:
            killed = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(ended[1])
    return {"code": code, "killed": killed and code == -signal.SIGKILL}  # else it had just come to its end


def _case(request: dict[str, Any]) -> NoReturn:
    """Be the command of a request, and end as its process would."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as an interpreter opens them
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.dump_traceback_later(request["limit_s"], exit=True, file=2)
    _bound()
    os.chdir(request["cwd"])
    _surround(request["env"])
    sys.argv = ["harness", *request["argv"]]
    code = 1
    try:
        _shorten(request["until"])
        DOORS[request["door"]]()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # the interpreter would print it, too
        traceback.print_exc()
    _leave(code)


def _surround(env: dict[str, str] | None) -> None:
    """Be in an environment: what is on its PYTHONPATH is found, plug-ins included."""
    if env is None:
        return
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = added
    importlib.invalidate_caches()
    from harness import registry

    for each in vars(registry).values():
        if isinstance(each, registry.Registry):
            each.__dict__.pop("_points", None)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = 120  # as Python ends when it cannot flush
    os._exit(code & 0xFF)


def _bound() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _shorten(until: str | None) -> None:
    """Pretend that the machine was measured, and end a case where it has come far enough.

    Args:
        until: ``weights``, before any are read, or a corpus for training is; ``decoded``, when the warm-up of a run
            has used them; or the end.
    """
    from harness.metering import examine
    from harness.models.model import ResolvedModel
    from harness.records.machine import MachineRecord
    from harness.running import runner
    from harness.training import corpus

    def enough(*_: object, **__: object) -> NoReturn:
        _leave(ACCEPTED)

    machine = MachineRecord(device="cpu", dtype="float32", bandwidth_bytes_per_s=1e10, bandwidth_kernel="pretended")
    runner.examine = lambda *_, **__: machine
    if until is not None:
        examine.examine = enough
    if until == "weights":
        ResolvedModel.load = ResolvedModel.module = corpus.pack = enough  # type: ignore[method-assign]
    elif until == "decoded":
        runner.describe_run = enough


# ------------------------------------------------------------------------------------------ doors


def _command() -> None:
    from harness.cli import main as command

    command()


def _read() -> None:
    """``harness.read`` from Python; a refusal ends as the command's does."""
    import harness
    from harness.commands.console import refuse
    from harness.errors import HarnessError

    try:
        run = harness.read(sys.argv[1])
        print(ascii(run), len(run.rows), len(run.samples), len(run.tokens))
    except HarnessError as error:
        refuse(error.message, error.commands)
        sys.exit(error.exit_code)


class _Bytes:
    """One token per byte."""

    eos_token_ids: frozenset[int] = frozenset()
    start_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Any) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


def _draw() -> None:
    """Draw every sample of a source: ``PROTOCOL SOURCE``; prints what became of its rows."""
    from harness.commands.console import refuse
    from harness.contracts import TaskRequest
    from harness.errors import HarnessError
    from tasks.py150 import Py150

    try:
        data = Py150().load(TaskRequest(sys.argv[1], sys.argv[2], max_positions=4096), _Bytes())
    except HarnessError as error:
        refuse(error.message, error.commands)
        sys.exit(error.exit_code)
    for sample in data.samples:
        json.dumps([sample.sample_id, sample.reference], ensure_ascii=False).encode()  # else no record could hold it
    bad = [[row.sample_id, row.reason] for row in data.bad_rows]
    samples = [sample.sample_id for sample in data.samples]
    print(json.dumps({"samples": samples, "bad": bad, "detail": dict(data.source.detail)}))


def _study() -> None:
    """The command, with points measured in its own process."""
    sys.path.append(str(Path(__file__).parents[2]))
    from harness.study.executors.local import Local
    from tests.study.inline import Inline

    Local.open = Inline.open  # type: ignore[assignment,method-assign]
    _command()


DOORS = {"command": _command, "read": _read, "draw": _draw, "study": _study}

if __name__ == "__main__":
    main()
