"""The environment of a measurement: machine, operating system, threads, code and package versions.

Written into every manifest and compared on resume, without host name, user name or path: run directories are published.
torch is asked only if it is imported already; otherwise its facts are ``None`` and only its version is known.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from harness.host.files import real_path
from harness.host.processor import core_count, governors, quota_cores, read_text

DECIDING = ("harness", "strategies", "tasks")
"""Packages of this project that decide what a run measures; reports are made of what was measured."""

_ROOT = Path(__file__).parents[2]
_SOURCES = frozenset({".py", ".so", ".pyd"})


def hash_of_code(*folders: str) -> str:
    """Return a hash over this project's source files in folders, such as ``harness/decoding``, 64 hex digits."""
    return hashlib.sha256("".join(map(_hash_of_folder, folders)).encode()).hexdigest()


@cache
def hash_of_package(module: str, distribution: str = "") -> str:
    """Return a hash over the code that a module belongs to, 16 hex digits; empty where it is in no file.

    That is its distribution's, its package's, and of what these import all that no other distribution brings.
    """
    module = module.partition(".")[0]
    files = [Path(str(file.locate())) for file in (distribution and metadata.files(distribution)) or ()]
    sources, waiting, seen = set[Path](), [*files, *_files_of(module)], {module}
    while waiting:
        new = {real_path(file) for file in waiting if file.suffix in _SOURCES and file.is_file()} - sources
        sources |= new
        names = {name for file in new if file.suffix == ".py" for name in _imported(file)} - seen
        seen |= names
        waiting = [file for name in names if _is_of_nobody_else(name, module, distribution) for file in _files_of(name)]
    return _hash_of(sources)[:16] if sources else ""


def _files_of(module: str) -> list[Path]:
    """Return the files of a module without a dot, or of the package that it is."""
    try:
        found = importlib.util.find_spec(module)
    except ValueError:  # what is typed at a prompt
        found = None
    files = [file for folder in (found and found.submodule_search_locations) or () for file in Path(folder).rglob("*")]
    return [*files, *([Path(found.origin)] if found is not None and found.origin else [])]


def _imported(file: Path) -> Iterator[str]:
    """Yield the first names of what a source file imports; nothing of one that is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _is_of_nobody_else(name: str, module: str, distribution: str) -> bool:
    """Whether what a module imports is neither Python's nor of other distributions than its own."""
    if name in sys.stdlib_module_names:
        return False
    owners = _owners().get(name, [distribution])
    return distribution in owners or bool(set(owners) & set(_owners().get(module, ())))


@cache
def _owners() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@cache
def _hash_of_folder(folder: str) -> str:
    return _hash_of((_ROOT / folder).rglob("*.py"))


def _hash_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files):
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


PACKAGES = (
    *("codebleu", "datasets", "early-exit-harness", "numpy", "rapidfuzz", "rouge-score", "sacrebleu", "tokenizers"),
    *("torch", "transformers", "tree-sitter", "tree-sitter-java", "tree-sitter-python", "zeus"),
)
"""Distributions whose version can change a number."""

ARITHMETIC = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE"),
    *("MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
)
"""Variables by which libraries choose instructions or precision; torch and Numba say what became of theirs."""

CODE = ("harness", "strategies", "tasks", "reports", "pyproject.toml")
"""A reason why a checkout is dirty: an uncommitted change here, an untracked file included."""

CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """Return the facts of this process' environment, JSON-able; ``None`` where one is unavailable."""
    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "logical_cores": os.cpu_count(),
        "usable_cores": core_count(),
        "quota_cores": quota_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        **_torch_facts(),
        "arithmetic": {name: os.environ[name] for name in ARITHMETIC if name in os.environ},
        "governor": (governors() or (None,))[0],
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "git": _git(),
        "code": {name: hash_of_code(name)[:16] for name in DECIDING},
        "packages": {name: _version(name) for name in PACKAGES},
    }


def machine_line(environment: Mapping[str, Any]) -> str:
    """Return the machine in one readable line, from :func:`describe` or a manifest; missing facts are omitted."""
    cores = environment.get("logical_cores")
    cpu = plain_processor(environment.get("cpu") or environment.get("architecture") or "unknown processor")
    cpu, gpus = cpu.partition("@")[0].strip(), environment.get("gpus") or []
    memory = environment.get("memory_bytes")
    threads = environment.get("torch_threads")
    torch_version = (environment.get("packages") or {}).get("torch")
    parts = [
        f"{cpu} ({cores} core{'s' if cores != 1 else ''})" if cores else cpu,
        f"{memory / 2**30:.0f} GiB" if memory and memory < 2**60 else "",
        *(one if gpus.count(one) == 1 else f"{gpus.count(one)} × {one}" for one in dict.fromkeys(gpus)),
        _short(environment.get("os") or ""),
        f"Python {_short(environment['python'])}" if environment.get("python") else "",
        f"torch {_short(torch_version)}" + (f" ({threads} thread{'s' if threads != 1 else ''})" if threads else "")
        if torch_version
        else "",
    ]
    return ", ".join(part for part in parts if part)


def plain_processor(name: str) -> str:
    """Drop trademarks and filler but keep the stated clock: ``Intel(R) Xeon(R) Processor`` → ``Intel Xeon``."""
    return " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\b(\d+-Core )?Processor\b", " ", name).split())


def _short(version: str) -> str:
    """Keep two numbers of a version: ``Linux 6.8.0-45-generic`` → ``Linux 6.8``."""
    return re.sub(r"(\d+\.\d+).*", r"\1", version)


def _cpu_model() -> str | None:
    found = re.findall(r"^(model name|CPU implementer|CPU part)\s*:\s*(.+)", read_text(CPUINFO) or "", re.MULTILINE)
    facts = dict(reversed(found))  # of the first core
    arm = " ".join(f"{key.removeprefix('CPU ')} {facts[key]}" for key in sorted(facts))  # which Linux gives no name
    return facts.get("model name") or (f"Arm {arm}" if arm else platform.processor()) or None


def _torch_facts() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {"torch_threads": None, "instructions": None, "gpus": None, "gpu_driver": None, "cuda": None}
    visible = torch.cuda.is_available()
    return {
        "torch_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if visible else [],
        "gpu_driver": read_text(Path("/sys/module/nvidia/version")) if visible else None,
        "cuda": torch.version.cuda if visible else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path | None = None) -> dict[str, Any] | None:
    """Return commit and dirtiness of the checkout this code was imported from; ``None`` without one."""
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a site-packages folder inside another repository is not ours
        return None
    commit = _git_output(root, "rev-parse", "HEAD")
    status = _git_output(root, "status", "--porcelain", "--", *CODE)
    return None if commit is None else {"commit": commit, "dirty": None if status is None else status != ""}


def _git_output(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, a repository of another user, no commit yet
        return None
    return done.stdout.strip()
