"""RepoBench v1.1: the next line of a file, with pieces of the files that it imports."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import partial
from typing import ClassVar

from harness.errors import DataError
from tasks.benchmark_task import BenchmarkTask
from tasks.languages import JAVA, PYTHON
from tasks.rows import FieldError, Fragment, GapRow, field_text
from tasks.sources.benchmark import Benchmark, Part, texts

_SETTINGS = ("cross_file_first", "cross_file_random", "in_file")
_TEXTS = ("repo_name", "file_path", "import_statement", "cropped_code", "next_line", "level")
_SUFFIXES = {"python": ".py", "java": ".java"}
"""Language → how the names of its files end. In all else its rows are laid out as the other's."""


def _row(language: str, setting: str, number: int, record: Mapping[str, object]) -> GapRow:
    found = texts(record, *_TEXTS)
    other = next((name for name, suffix in _SUFFIXES.items() if found["file_path"].endswith(suffix)), language)
    if other != language:
        raise DataError(
            f"these are rows of repobench-{other}: row {number} of {setting} is of a {_SUFFIXES[other]} file. Use "
            f"--task repobench-{other}, or give the data of repobench-{language} with --source."
        )
    pieces = record["context"]
    if not isinstance(pieces, list) or not all(isinstance(piece, Mapping) for piece in pieces):
        raise FieldError("'context' is no list of {path, snippet}")
    fragments = tuple(
        Fragment(field_text("context.path", piece.get("path")), field_text("context.snippet", piece.get("snippet")))
        for piece in pieces
    )
    created = record["created_at"]
    day = created.isoformat() if isinstance(created, date) else field_text("created_at", created)
    return GapRow(
        number,
        f"{setting}-{number - 1}",
        before=found.pop("cropped_code"),
        answer=found.pop("next_line"),
        fragments=fragments,
        facts={**found, "created_at": day[:10]},
        project=found["repo_name"],
    )


def _benchmark(language: str) -> Benchmark:
    repository = f"tianyang/repobench_{language}_v1.1"
    return Benchmark(
        title=f"RepoBench v1.1 ({language})",
        parts=tuple(Part(name, (f"data/{name}-*.parquet", f"{name}-*.parquet")) for name in _SETTINGS),
        columns=(*_TEXTS, "context", "created_at"),
        parse=partial(_row, language),
        origin=f"{repository} (hub)",
        download=f"hf download {repository} --repo-type dataset --local-dir FOLDER",
    )


class RepoBenchPython(BenchmarkTask):
    """Next line of Python files, given pieces of the files they import (RepoBench v1.1); for evaluation alone.

    Source: Liu, Xu, McAuley, "RepoBench: Benchmarking Repository-Level Code Auto-Completion Systems", ICLR 2024, arXiv
    2306.03091; hub dataset tianyang/repobench_python_v1.1 (licence: cc; the authors' repository: CC BY 4.0), GitHub
    code of October to December 2023.

    Rows (Parquet in ``data/``): repo_name, file_path, context (a list of {identifier, path, snippet}),
    import_statement, cropped_code, next_line, created_at, level. The three settings (cross_file_first,
    cross_file_random, in_file) are drawn from together; one of their files as ``--source`` draws from that one.
    Protocol: repobench.
    """

    name = "repobench-python"
    code = PYTHON
    benchmark = _benchmark("python")
    offers: ClassVar[frozenset[str]] = frozenset({"repobench"})
    default_protocol: ClassVar[str] = "repobench"


class RepoBenchJava(BenchmarkTask):
    """Next line of Java files, given pieces of the files they import (RepoBench v1.1); for evaluation alone.

    As repobench-python, of the hub dataset tianyang/repobench_java_v1.1.
    """

    name = "repobench-java"
    code = JAVA
    benchmark = _benchmark("java")
    offers: ClassVar[frozenset[str]] = frozenset({"repobench"})
    default_protocol: ClassVar[str] = "repobench"
