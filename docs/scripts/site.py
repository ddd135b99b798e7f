"""Build the documentation site into build/site: the pages, and those of the reference, which are made of the code.

``make docs``. Sources are put together in build/docs, where the reference can be read as Markdown, too. A link or an
anchor that leads nowhere fails it, and so does a file that would load something from another host: the site works
without a network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from reference import filled, generated

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = ("*.py", "scripts", "upstream")
_ADDRESS = r"""["']?((?:https?:)?//[^\s"'>)]+)"""
_LOADS = re.compile(
    rf"<(?:script|img|iframe|source|video|audio|embed|object|track|input)\b[^>]*\s(?:src|srcset|poster|data)={_ADDRESS}"
    r"|<link\b(?=[^>]*\srel=[\"']?[^\"'>]*(?:stylesheet|icon|preload|prefetch|preconnect|manifest))"
    rf"[^>]*\shref={_ADDRESS}"
    rf"|(?:\burl\(|@import)\s*{_ADDRESS}",
    re.IGNORECASE,
)


def gather(into: Path) -> None:
    """Write what the site is built of."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(ROOT / "docs", into, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for page in into.rglob("*.md"):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    for path, content in generated():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).write_text(content, encoding="utf-8")


def finish(site: Path) -> list[str]:
    """Take out of pages what docstrings tell other programs of a name, as ``:class:`` and ``~`` do.

    Returns:
        What each file would load from other hosts, ``FILE: ADDRESS``; links may lead there.
    """
    found: list[str] = []
    for file in sorted(file for file in site.rglob("*") if file.suffix in (".html", ".css")):
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(r":\w+:(<code>)~?", r"\1", text), encoding="utf-8")
        found += [f"{file.relative_to(site)}: {next(filter(None, some))}" for some in _LOADS.findall(text)]
    return found


def main() -> int:
    """Build it; return the exit status."""
    site = ROOT / "build" / "site"
    gather(ROOT / "build" / "docs")
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if built.returncode:
        said = built.stdout + built.stderr.partition("Traceback")[0]
        print(re.sub(r"\x1b\[[\d;]*m", "", said), file=sys.stderr)  # it colours letter by letter
    elif elsewhere := finish(site):
        print("these files need another host:", *elsewhere, sep="\n", file=sys.stderr)
    else:
        print(f"{site.relative_to(ROOT)}: {sum(1 for _ in site.rglob('*.html'))} pages, every link checked")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
