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
MODES = frozenset("wax+")
"""Signs of an open that writes, in its flags or its mode: C code opens files without flags."""

REFUSED = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "pty.spawn"),
        *("os.kill", "os.killpg", "signal.pthread_kill", "subprocess.", "socket.", "ctypes.", "sys.remote_exec"),
        *("os.chmod", "os.chown", "os.chflags", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
        *("os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "shutil.", "sqlite3."),
        *("resource.", "fcntl.", "syslog.", "gc.", "cpython.PyInterpreterState_New"),
    )
)
"""Audit events that a program may not cause; one that ends in a full stop stands for all that begin so."""

REMOVED = (
    *("pidfd_open", "pidfd_send_signal", "mkfifo", "mknod", "nice", "setpriority"),
    *("sched_setaffinity", "sched_setparam", "sched_setscheduler"),
)
"""Functions that reach other processes or make files and cause no audit event."""

NEVER_IMPORTED = frozenset(
    (
        *("_ctypes", "_posixsubprocess", "_multiprocessing", "multiprocessing", "ctypes"),
        *("_dbm", "_gdbm", "_posixshmem", "_tkinter", "readline"),  # these write files and cause no audit event
        *("posix", "_signal"),  # already there; imported anew they are complete again
    )
)


def remove() -> None:
    """Take the functions that no audit event guards out of their modules."""
    modules = [vars(sys.modules[name]) for name in ("os", "posix", "signal", "_signal")]
    os.supports_dir_fd -= {module.pop(name, None) for module in modules for name in REMOVED}
    exported = vars(os)["__all__"]
    exported[:] = [name for name in exported if name not in REMOVED]


def guard() -> None:
    """Refuse from now on what a program has no reason to do.

    The hook has no name, and decides by nothing that a program can bind anew: no name of this module or of
    ``builtins``, and no variable that it closes over, which Python 3.13 sets through the frame in a traceback.
    """

    def refuse(
        event: str,
        arguments: tuple[Any, ...],
        refused: frozenset[str] = REFUSED,
        never: frozenset[str] = NEVER_IMPORTED,
        writes: int = WRITES,
        modes: frozenset[str] = MODES,
    ) -> None:
        if event == "import":
            name = "".join(arguments[:1])  # as plain text: a subclass of str may equal nothing
            if name in never:
                raise ImportError(f"{name} is refused here")
            return
        if event == "open":
            wrong = (arguments[2] or 0) & writes or not modes.isdisjoint(arguments[1] or "")
        else:
            wrong = event in refused or f"{event.partition('.')[0]}." in refused
        if wrong:
            raise PermissionError(f"{event} is refused here")

    sys.addaudithook(refuse)


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
    leave, write = os._exit, os.write  # the program may bind those of os anew
    limit(seconds, memory)
    remove()
    guard()
    signal.signal(signal.SIGALRM, lambda *_: leave(1))  # handled, as unhandled ones never end a namespace's first
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        exec(compile(program.decode(), "<program>", "exec"), {})  # nosec B102  # what this process is for
    except BaseException:
        leave(1)
    write(answer, proof)
    leave(0)


if __name__ == "__main__":
    main()
