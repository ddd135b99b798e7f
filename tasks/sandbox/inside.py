"""Runs inside the sandbox, as a script and never imported: sets its own limits, then becomes the program.

Standard input has a proof on its first line and the program behind it; the proof is written to standard output when the
program has come to its end. Arguments: seconds, bytes of memory.
"""

import math
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

REFUSED = (
    *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "pty.spawn"),
    *("os.kill", "os.killpg", "signal.pthread_kill", "subprocess.", "socket.", "ctypes."),
    *("os.chmod", "os.chown", "os.chflags", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("os.truncate", "os.utime", "os.setxattr", "os.removexattr", "shutil.", "resource.", "fcntl.", "syslog."),
)
"""Audit events that a program may not cause; one that ends in a full stop stands for all that begin so."""

NEVER_IMPORTED = {"_ctypes", "_posixsubprocess", "_multiprocessing", "multiprocessing", "ctypes"}


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what a program has no reason to do. An audit hook cannot be taken away again."""
    if event == "open":
        wrong = isinstance(arguments[2], int) and arguments[2] & WRITES
    elif event == "import":
        wrong = arguments[0] in NEVER_IMPORTED
    else:
        wrong = event in REFUSED or f"{event.partition('.')[0]}." in REFUSED
    if wrong:
        raise PermissionError(f"{event} is refused here")


def limit(seconds: float, memory: int) -> None:
    """Set limits that this process cannot raise again, as far as the system has them."""
    cpu = math.ceil(seconds) + 1
    wanted = {"RLIMIT_CPU": cpu, "RLIMIT_AS": memory, "RLIMIT_DATA": memory, "RLIMIT_FSIZE": 1 << 16}
    wanted |= {"RLIMIT_NOFILE": 32, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, most in wanted.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        hard = resource.getrlimit(number)[1]
        lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(OSError, ValueError):  # macOS has no limit of address space
            resource.setrlimit(number, (lowest, lowest))


def main() -> None:
    """Run the program and prove that it ended."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    proof, _, program = sys.stdin.buffer.read().partition(b"\n")
    answer, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    limit(seconds, memory)
    sys.addaudithook(refuse)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))  # handled, as unhandled ones never end a namespace's first
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        exec(compile(program.decode(), "<program>", "exec"), {})  # nosec B102  # what this process is for
    except BaseException:
        os._exit(1)
    os.write(answer, proof)
    os._exit(0)


if __name__ == "__main__":
    main()
