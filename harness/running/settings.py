"""Which settings a command runs with: its flags over a file, and both over the configuration of the run to resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.errors import ConfigError
from harness.running.plugins import refuse_absent_plugins
from harness.store.run_directory import RunDirectory

__all__ = ["resolve_settings"]


def resolve_settings(given: Mapping[str, Any], config: Path | None, resume: Path | None) -> RunConfig:
    """Return the configuration of a run.

    Args:
        given: by flags, with the names of :class:`RunConfig`.
        config: TOML file.
        resume: run directory to continue.

    Raises:
        ConfigError: unknown name, wrong type or out of range, or ``out`` is not the run to resume.
        StoreError: the run to resume cannot be read, or needs packages that are not installed.
    """
    before: dict[str, Any] = {}
    if resume is not None:
        with RunDirectory.read(resume) as store:
            refuse_absent_plugins(resume, store.manifest)
            before = {key: value for key, value in store.manifest.config.items() if key != "out"}
    settings = RunConfig.build({**before, **(RunConfig.read_toml(config) if config is not None else {}), **given})
    if resume is not None and settings.out is not None and settings.out.absolute() != resume.absolute():
        raise ConfigError(f"--out {settings.out} and --resume {resume} name two directories. Omit --out.")
    return settings
