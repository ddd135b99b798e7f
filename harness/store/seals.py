"""Seals bind the files of a run to each other: every record says which run wrote it, and a hash covers all before it.

The store adds it behind the fields of a record, so that records know nothing of it and readers that do not look for it
ignore it:

* ``manifest.json`` ends with ``"sha256"`` over its own bytes before that member, its *seal*; its ``"run"`` is 16
  hexadecimal digits, drawn when the run is made;
* a line of ``samples.jsonl`` ends with ``"run"``;
* a line of ``windows.jsonl`` ends with ``"run"`` and ``"sha256"`` over the seal before it, the lines of its samples and
  its own bytes before that member: its seal, which the next line's covers.

So a changed, lost, added or exchanged byte of anything committed breaks the chain, and files of two runs cannot pass
for one. ``summary.json`` names the last seal of the records it was made of, and has one of its own. Not promised:
protection against somebody who writes new seals. Runs of before there were seals have none.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable

__all__ = ["new_run", "run_of", "seal_of", "sealed_document", "sealed_window", "split_seal", "with_run"]

_RUN = re.compile(rb',"run":"([0-9a-f]{16})"(?:,"sha256":"[0-9a-f]{64}")?}\n\Z')
_SEAL = re.compile(rb'(?:,\n  "sha256": "([0-9a-f]{64})"\n|,"sha256":"([0-9a-f]{64})")}\n\Z')
_LONGEST_END = 256
"""Bytes; what the store adds is shorter."""


def new_run() -> str:
    """Return the id of a new run."""
    return secrets.token_hex(8)


def with_run(line: bytes, run: str) -> bytes:
    """Return a record's line with the run's id; as it is for a run without one."""
    return line.removesuffix(b"}\n") + f',"run":"{run}"}}\n'.encode() if run else line


def run_of(line: bytes) -> str:
    """Return the id of the run that wrote a line; empty where it names none."""
    found = _RUN.search(line, max(0, len(line) - _LONGEST_END))
    return found[1].decode() if found else ""


def seal_of(before: str, parts: Iterable[bytes]) -> str:
    """Return the seal over an earlier one and the bytes that follow it."""
    digest = hashlib.sha256(before.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sealed_document(document: bytes) -> tuple[bytes, str]:
    """Return an indented JSON object with a seal over its own bytes as the last member, and the seal."""
    body = document.removesuffix(b"\n}\n")
    seal = seal_of("", [body])
    return body + f',\n  "sha256": "{seal}"\n}}\n'.encode(), seal


def sealed_window(line: bytes, samples: bytes, run: str, before: str) -> tuple[bytes, str]:
    """Return a window's line with the run's id and its seal, and the seal.

    Args:
        line: of the window.
        samples: lines of its samples.
        run: id of the run; without one the line stays as it is and its seal is empty.
        before: seal of the record before.
    """
    if not run:
        return line, ""
    body = with_run(line, run).removesuffix(b"}\n")
    seal = seal_of(before, [samples, body])
    return body + f',"sha256":"{seal}"}}\n'.encode(), seal


def split_seal(record: bytes) -> tuple[bytes, str]:
    """Return what a seal covers of a record, and the seal; all of it, and an empty one, where it bears none."""
    found = _SEAL.search(record, max(0, len(record) - _LONGEST_END))
    return (record[: found.start()], (found[1] or found[2]).decode()) if found else (record, "")
