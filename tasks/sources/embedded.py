"""Rows from source code that is on the machine already: Python's standard library, the JDK's ``src.zip``.

They make every task run with nothing downloaded. They are not PY150 or JavaCorpus, and their label says so. A
model may have seen this code in training, as it may have seen the datasets.

Formatting stays, but comments and docstrings are taken out, as in CodeXGLUE's preparation of both datasets (comments
are dropped, a docstring becomes an empty literal). With them in, a task would not measure code: of the references
that the green-code protocol cuts from whole files, 83 % (JDK 25) and 40 % (Python 3.11) were mostly prose, and half of
the JDK's lay in the licence header.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from harness.contracts import LONGEST_ID, BadRow, Document, Split
from harness.errors import DataError, reason
from harness.host.files import real_path
from tasks.languages import JAVA, PYTHON, Language
from tasks.rows import FieldError, Row, Rows, field_text

_NOT_LIBRARY = {
    *("test", "tests", "idle_test", "lib2to3", "__phello__", "idlelib", "turtledemo", "encodings", "pydoc_data"),
    *("site-packages", "dist-packages", "ensurepip", "__pycache__", "lib-dynload"),
}
"""Tests, packages, programs and tables."""

_TABLES = {"jdk.localedata", "jdk.charsets"}
"""Modules of the JDK that hold no code to speak of."""

TRAIN_SHARE, VALIDATION_SHARE = 0.60, 0.05
"""Of the projects; the rest are for tests."""


class SourceFiles(Rows):
    """Source files without their comments, in the order of their names, which become sample ids."""

    kind: Literal["path", "hub", "embedded"] = "embedded"

    def __init__(
        self,
        label: str,
        language: Language,
        names: Sequence[str],
        *,
        content: Callable[[str], bytes],
        detail: Mapping[str, str],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.label, self.detail = label, {**detail, "comments": "removed"}
        self._language, self._names, self._content, self.release = language, sorted(names), content, release

    def __len__(self) -> int:
        return len(self._names)

    def part(self, split: Split) -> SourceFiles:
        """Return the files of one split: the project's name alone decides, so that none is in two of them."""
        label = f"{self.label}, {split} projects" if split != "test" else self.label
        names = [name for name in self._names if _split_of(_project_of(name)) == split]
        detail = {**self.detail, "split": f"{split}, by hash of the project"}
        return SourceFiles(label, self._language, names, content=self._content, detail=detail, release=self.release)

    def close(self) -> None:
        """Release files that were kept open."""
        self.release()

    def read(self, index: int) -> Row:
        """Return one file as a document; see :class:`~tasks.rows.Rows`."""
        name = self._names[index]
        try:
            field_text("id", name, LONGEST_ID)
            text = self._content(name).decode("utf-8")
        except FieldError as error:
            return BadRow(name, f"row {index + 1}: {error}")
        except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            return BadRow(name, f"row {index + 1}: {name} cannot be read ({reason(error)})")
        return Document(index + 1, name, self._language.without_comments(text), _project_of(name).removesuffix(".py"))


def _project_of(name: str) -> str:
    """Return the package or module of Python's library that a file is of, or the JDK's module."""
    return name.partition("/")[0]


def _split_of(project: str) -> Split:
    share = int(hashlib.sha256(project.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32
    return "train" if share < TRAIN_SHARE else "test" if share < 1 - VALIDATION_SHARE else "validation"


def standard_library() -> SourceFiles:
    """Return the modules of the running Python's standard library, without its tests."""
    folder = Path(sysconfig.get_path("stdlib"))
    names: list[str] = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        modules = [name for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        names += [(Path(here) / name).relative_to(folder).as_posix() for name in modules]
    if not names:
        raise DataError(f"this Python has no source files in {folder}. Give rows with --source PATH.")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return SourceFiles(
        f"embedded: Python {version} standard library",
        PYTHON,
        names,
        content=lambda name: (folder / name).read_bytes(),
        detail={"path": str(folder), "python": platform.python_version()},
    )


def jdk_sources() -> SourceFiles:
    """Return the classes of all modules from the ``src.zip`` of the first installed JDK that has one."""
    for home in jdk_homes():
        if (path := home / "lib" / "src.zip").is_file():
            break
    else:
        raise DataError(
            "no JDK with its sources (lib/src.zip) is installed. Install them, for example `apt-get install "
            "openjdk-21-source`, set JAVA_HOME, or give rows with --source PATH."
        )
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read the JDK's sources {path}: {error}. Install the JDK's source package.") from None
    names = [
        name
        for name in archive.namelist()
        if name.endswith(".java") and not name.endswith("-info.java") and _project_of(name) not in _TABLES
    ]
    if not names:
        archive.close()
        raise DataError(f"the JDK's sources {path} hold no class. Install the JDK's source package.")
    version = _version(home) or "of unknown version"
    return SourceFiles(
        f"embedded: JDK {version.split('.')[0]} sources",
        JAVA,
        names,
        content=archive.read,
        detail={"path": str(path), "jdk": version},
        release=archive.close,
    )


def jdk_homes() -> Iterator[Path]:
    """Yield where a JDK may lie: ``JAVA_HOME``, the ``java`` on the path, then the usual folders, newest first."""
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home)
    if java := shutil.which("java"):
        yield real_path(java).parent.parent
    roots = [(Path("/usr/lib/jvm"), "*"), (Path("/Library/Java/JavaVirtualMachines"), "*/Contents/Home")]
    for root, pattern in roots:
        numbered = [(int(_version(home).split(".")[0] or 0), home.name, home) for home in root.glob(pattern)]
        yield from (home for _, _, home in sorted(numbered, reverse=True))


def _version(home: Path) -> str:
    release = home / "release"
    text = release.read_text(encoding="utf-8", errors="replace") if release.is_file() else ""
    found = re.search(r'^JAVA_VERSION="?([\d.]+)', text, re.MULTILINE)
    return found[1] if found else ""
