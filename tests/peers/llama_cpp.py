"""llama.cpp, where it can be had: its libraries from npm, and GGUF files for it in further quantisations.

The package ``@node-llama-cpp/linux-x64`` (or ``-arm64``) ships llama.cpp built for every generation of processors, with
nothing to compile and nothing to download besides; its addon for Node is not used. ``make peers`` installs it into
``.peers`` once. Nothing here is needed by the harness, and whoever asks without it gets the reason.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.peers.llama_cpp_library import QUANTISATIONS, RELEASE

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
VERSION = "3.22.1"  # of the package; its llama.cpp is RELEASE, whose structures llama_cpp_library.py has
BUILDS = {("Linux", "x86_64"): "linux-x64", ("Linux", "aarch64"): "linux-arm64"}
INSTALL_S, QUANTISE_S = 300, 600


class PeerAbsentError(Exception):
    """llama.cpp is not here; the message is the reason for a skip."""


def libraries() -> Path:
    """Return the folder of the installed libraries.

    Raises:
        PeerAbsentError: there are none.
    """
    folder = FOLDER / "node_modules" / "@node-llama-cpp" / _build() / "bins" / _build()
    if not (folder / f"libllama.{RELEASE}.so").is_file():
        raise PeerAbsentError(f"llama.cpp {RELEASE} is not installed: make peers (needs npm and its registry)")
    return folder


def install() -> Path:
    """Install the libraries unless they are there, and return their folder.

    Raises:
        PeerAbsentError: there is no build for this machine, no npm, or npm failed.
    """
    try:
        return libraries()
    except PeerAbsentError:
        package = f"@node-llama-cpp/{_build()}@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise PeerAbsentError("npm is not installed, and llama.cpp comes from its registry")
    flags = ["--ignore-scripts", "--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        FOLDER.mkdir(exist_ok=True)
        done = subprocess.run(
            [npm, "install", "--prefix", str(FOLDER), *flags, package],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PeerAbsentError(f"npm did not install {package} in {INSTALL_S} s") from None
    except OSError as error:
        raise PeerAbsentError(f"{error.filename}: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PeerAbsentError(f"npm cannot install {package}: {' '.join(said[:2])}")
    return libraries()


def command(file: Path, threads: int, positions: int) -> tuple[str, ...]:
    """Return what a :class:`tests.peers.workers.Worker` takes to run llama.cpp on a GGUF file.

    Raises:
        PeerAbsentError: it is not installed.
    """
    return ("tests.peers.llama_cpp_worker", str(libraries()), str(file.absolute()), str(threads), str(positions))


def quantised(source: Path, quantisation: str) -> Path:
    """Return a GGUF file with the matrices of another one in ``quantisation``, made by llama.cpp once and kept.

    What is quantised already is dequantised first: to ``F16`` and ``Q8_0`` next to nothing is lost, and ``Q4_0`` of a
    ``Q4_1`` file is fit for measuring speed but not for judging quality.

    Raises:
        PeerAbsentError: llama.cpp is not installed, or refuses.
    """
    stat = source.stat()
    target = FOLDER / "models" / f"{source.stem}-{stat.st_size}-{stat.st_mtime_ns}.{quantisation}.gguf"
    if target.is_file():
        return target
    assert quantisation in QUANTISATIONS, quantisation
    folder = libraries()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as building:
        made = Path(building) / target.name
        made_by = [sys.executable, "-m", "tests.peers.llama_cpp_library", str(folder), str(source), str(made)]
        done = subprocess.run(
            [*made_by, quantisation], cwd=ROOT, capture_output=True, text=True, timeout=QUANTISE_S, check=False
        )
        if done.returncode != 0:
            raise PeerAbsentError(
                f"llama.cpp cannot make {quantisation} of {source.name}: {done.stderr.strip()[-200:]}"
            )
        os.replace(made, target)
    return target


def _build() -> str:
    machine = platform.system(), platform.machine()
    if machine not in BUILDS:
        raise PeerAbsentError(f"no build of llama.cpp is known for {' '.join(machine)}")
    return BUILDS[machine]


if __name__ == "__main__":
    try:
        print(f"llama.cpp {RELEASE} is in {install()}")
    except PeerAbsentError as absent:
        print(f"llama.cpp will not be measured: {absent}")
