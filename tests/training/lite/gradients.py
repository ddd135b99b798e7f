"""``harness train lite`` as a function that keeps every step's gradients; several processes run this as a script.

Whole weights learn in float32, which training itself does not use for its products: what differs then is no rounding of
bfloat16. accelerate spreads weights with FSDP over GPUs only; where the environment asks for that, it is told to do so
over CPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainingArguments

from harness.contracts.recipes import TrainingRun
from harness.training.lite import fit, trainer
from harness.training.recipes import Lite


class KeepsGradients(trainer.StepWatcher):
    """Writes the gradients beside the log, once they are those of all processes."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        found: dict[str, Tensor] = {}
        for name, parameter in named["model"].named_parameters():
            if parameter.grad is not None:
                whole = getattr(parameter.grad, "full_tensor", lambda grad=parameter.grad: grad)()  # of every process
                found[name.removeprefix("module.")] = whole.detach().clone()
        if state.is_world_process_zero:
            save_file(found, self._log.with_name(f"gradients-{state.global_step + 1}.safetensors"))


def in_float32(**settings: Any) -> TrainingArguments:
    return TrainingArguments(**{**settings, "bf16": False})


def spread_over_cpus() -> None:
    """Let accelerate do over processes on a CPU what it does over GPUs."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    real = AcceleratorState.__init__

    def begin(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        real(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = begin


def tune_keeping_gradients(settings: dict[str, Any]) -> None:
    with ExitStack() as patches:
        patches.enter_context(patch.object(fit, "StepWatcher", KeepsGradients))
        if settings["method"] == "full":  # LoRA's base weights are bfloat16
            patches.enter_context(patch.object(trainer, "TrainingArguments", in_float32))
        options = Lite.build({**settings, "out": Path(settings["out"])})
        fit.train_lite(options, TrainingRun("lite", "harness train lite"))


def main(jobs: list[dict[str, Any]]) -> None:
    """Tune once for each job, in its environment; one that resumes does so in a copy without the last checkpoint."""
    torch.set_num_threads(1)
    for job in jobs:
        settings, fsdp = job["settings"], "ACCELERATE_USE_FSDP" in os.environ
        os.environ.update(job["env"])
        if "ACCELERATE_USE_FSDP" in os.environ and not fsdp:
            spread_over_cpus()
        if settings.get("resume"):
            if os.environ["RANK"] == "0":
                shutil.copytree(job["begun"], settings["out"])
                shutil.rmtree(Path(settings["out"]) / "checkpoints" / f"checkpoint-{settings['steps']}")
            torch.distributed.barrier()
        tune_keeping_gradients(settings)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
