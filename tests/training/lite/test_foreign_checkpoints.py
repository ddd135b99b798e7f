"""Checkpoints of a tuning hold files of ``torch.save``: what SECURITY.md says of reading those of a stranger."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts.recipes import Trained
from harness.errors import TrainingError


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._folder),)


@pytest.fixture(scope="module")
def halfway(tune: Callable[..., Trained], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tuning whose last checkpoint is of the second of four steps."""
    out = tmp_path_factory.mktemp("tuned") / "artefacts"
    assert tune(tiny_llama, out).finished
    shutil.rmtree(out / "checkpoints" / "checkpoint-4")
    return out


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_code_in_a_checkpoint_runs(
    tune: Callable[..., Trained], tiny_llama: Path, halfway: Path, tmp_path: Path, name: str
) -> None:
    copy, went_off = Path(shutil.copytree(halfway, tmp_path / "copy")), tmp_path / "went-off"
    file = copy / "checkpoints" / "checkpoint-2" / name
    assert file.is_file()
    torch.save(Bomb(went_off), file)
    torch.load(file, weights_only=False)
    went_off.rmdir()  # it is live
    with pytest.raises(TrainingError, match=r"checkpoint-2 is damaged: .*Remove it to resume from the one before"):
        tune(tiny_llama, copy, resume=True)
    assert not went_off.exists()
