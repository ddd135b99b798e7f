"""Libraries of others: what they raise on a foreign file in one line, extras that are missing, torch's devices."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import ConfigError, HarnessError, ModelError, is_out_of_memory, reason


@contextmanager
def library_border(
    what: str,
    remedy: str = "",
    refusal: type[HarnessError] = ModelError,
    passing: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn what a library raises on a foreign file into one refusal."""
    try:
        yield
    except BaseException as error:  # broad: the file is foreign, and what libraries raise on it is not declared
        if isinstance(error, (HarnessError, *passing)):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # which Rust raises
            raise
        if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
            raise
        raise refusal(f"{what}: {reason(error)}. {remedy}".rstrip()) from error


NEEDED_BY = {
    "cluster": "the ray executor needs",
    "figures": "figures need",
    "hub": "rows of the hub need",
    "leaderboard": "the leaderboard's plot needs",
    "lm-eval": "lm-eval's tasks need",
    "serve": "serving needs",
    "train": "training needs",
}
"""Extra → what it is for, as a sentence begins that goes on with what is missing."""


def require(extra: str, *modules: str, otherwise: str = "") -> None:
    """Refuse to go on without some packages."""
    missing = [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        are = "which is not" if len(missing) == 1 else "which are not"
        raise ConfigError(
            f"{NEEDED_BY[extra]} {' and '.join(missing)}, {are} installed{f' ({otherwise})' if otherwise else ''}:",
            [f"pip install 'early-exit-harness[{extra}]'"],
        )


def resolve_device(name: str) -> str:
    """Return a torch device name: ``auto`` takes CUDA when there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is unknown to torch. Use cpu, cuda or cuda:N.") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device '{name}' is not supported. Use cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ConfigError(f"device '{name}' is not here: torch sees {seen} CUDA device(s). Use --device cpu.")
    return name
