"""``python -m tests.reference.record record|compare FOLDER [--only PART]``: keep what must not change, or compare."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTS = ("points", "real", "help", "refusals", "summaries", "replay", "server", "study")
TEXTS = "texts"
TOLERANCE = 1e-5
"""Relative and absolute; what is printed or measured by hand of floating point may differ by it."""


def main() -> int:
    """Return the exit code: 1 where something differs."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("action", choices=["record", "compare"])
    asked.add_argument("folder", type=Path)
    asked.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    asked.add_argument("--match", help="with --only points or real: the runs whose names this pattern is found in")
    asked.add_argument("--work", type=Path, help="folder to work in and keep; a temporary one otherwise")
    asked.add_argument("--texts", action="store_true", help="print the diffs of texts, not only that they differ")
    given = asked.parse_args()
    folder, differing = given.folder.absolute(), 0
    with working(given.work):
        from tests.reference.models import make_models

        make_models(Path())
        for part in given.only or PARTS:
            began = time.monotonic()
            record = importlib.import_module(f"tests.reference.{part}").record
            found = json.loads(json.dumps(record(given.match) if given.match else record()))
            file = folder / f"{part}.json.gz"
            if given.action == "record":
                folder.mkdir(parents=True, exist_ok=True)
                content = json.dumps(found, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
                file.write_bytes(gzip.compress(content, 9, mtime=0))
            else:
                before = json.loads(gzip.decompress(file.read_bytes()))
                before = {name: value for name, value in before.items() if re.search(given.match or "", name)}
                differing += compared(part, before, found, given.texts)
            print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return min(differing, 1)


@contextlib.contextmanager
def working(folder: Path | None) -> Iterator[None]:
    """Let a folder be the current one."""
    with contextlib.ExitStack() as stack:
        there = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        there.mkdir(parents=True, exist_ok=True)
        before = Path.cwd()
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(before), os.environ.get("PYTHONPATH")]))
        os.chdir(there)
        stack.callback(os.chdir, before)
        yield


def compared(part: str, before: Any, after: Any, show_texts: bool) -> int:
    """Print what differs, a line each; texts are told and do not count."""
    count = 0
    for line in differences(before, after, part):
        count += 1
        print(line)
    for name, text in (before.get(TEXTS) or {}).items():
        now = (after.get(TEXTS) or {}).get(name)
        if now != text:
            print(f"text differs: {part} {name}")
            if show_texts and now is not None:
                import difflib

                sys.stdout.writelines(
                    difflib.unified_diff(text.splitlines(True), now.splitlines(True), "before", "now", n=1)
                )
    return count


def differences(before: Any, after: Any, where: str) -> Iterator[str]:
    """Yield a line for each place where two documents differ; what lies at ``texts`` is left out."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            if key == TEXTS:
                continue
            if key not in after:
                yield f"{where} / {key}: gone, was {short(before[key])}"
            elif key not in before:
                yield f"{where} / {key}: new, is {short(after[key])}"
            else:
                yield from differences(before[key], after[key], f"{where} / {key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        if all(isinstance(value, int | str) for value in (*before, *after)):
            if before != after:
                yield f"{where}: was {short(before)}, is {short(after)}"
            return
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif not same(before, after):
        yield f"{where}: was {short(before)}, is {short(after)}"


def same(before: Any, after: Any) -> bool:
    """Whether two values are equal, numbers within the tolerance."""
    numbers = (int, float)
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    if isinstance(before, numbers) and isinstance(after, numbers):
        return (math.isnan(before) and math.isnan(after)) or math.isclose(
            before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE
        )
    return bool(before == after)


def short(value: Any) -> str:
    """Return a value as JSON of one line, not too long."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) < 160 else f"{text[:150]} … ({len(text)} characters)"


if __name__ == "__main__":
    sys.exit(main())
