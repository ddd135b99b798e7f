"""transformers' Trainer for LITE: its arguments, what it saves, when it stops, and the files it goes on from.

Where FSDP spreads the weights, checkpoints are as those of one process, and every process calls what writes them.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from harness.contracts.recipes import Progress
from harness.errors import ConfigError, ResumeError, TrainingError
from harness.host.files import read_json, refusing, replace_files
from harness.host.libraries import library_border
from harness.host.processor import multiplies_bfloat16
from harness.training.corpus import PackedStreams
from harness.training.lite.lite_model import LiteModel
from harness.training.processes import PATIENCE, sum_over_all
from harness.training.recipes import LiteRecipe

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""All weights or moments, on the CPU in the first process; in others nothing."""


def check_plugin(plugin: Any) -> None:
    """Refuse what this training cannot do with accelerate's ``FullyShardedDataParallelPlugin``.

    FSDP 1 wants parameters of one dtype; every process checks the weights that it reads; checkpoints are whole.
    """
    for wrong, setting in (
        (plugin.fsdp_version != 2, "fsdp_version: 2"),
        (plugin.cpu_ram_efficient_loading, "fsdp_cpu_ram_efficient_loading: false"),
        ("FULL" not in str(plugin.state_dict_type), "fsdp_state_dict_type: FULL_STATE_DICT"),
    ):
        if wrong:
            raise ConfigError(f"accelerate's configuration needs `{setting}` here: see docs/large-models.md.")


def in_bfloat16(device: str | None = None) -> bool:
    """Tell whether products are of bfloat16: not on a CPU that would emulate them, at a third of the speed."""
    return (device or ("cuda" if torch.cuda.is_available() else "cpu")) != "cpu" or multiplies_bfloat16()


BEGINNING = "begun.json"


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the checkpoint with the most steps that has the file the Trainer writes last, whole."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in checkpoints.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name) and _is_whole(path)
    ]
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    with suppress(OSError, ValueError):
        state = read_json(checkpoint / "trainer_state.json", finite=False)  # a loss may be NaN
        return isinstance(state, dict) and type(state.get("global_step")) is int
    return False


def check_beginning(checkpoints: Path, began: Mapping[str, Any], resume: bool) -> None:
    """Note what a training begins with, by flag, beside its checkpoints; one that is resumed must be given the same."""
    file, ours = checkpoints / BEGINNING, json.loads(json.dumps(began))
    if not resume:
        checkpoints.mkdir(exist_ok=True)
        replace_files({file: f"{json.dumps(ours, indent=1)}\n".encode()})
        return
    with refusing(file, ResumeError, f"Begin again with another --out, or remove {file.parent}."):
        theirs = read_json(file)
    for flag, now in ours.items():
        then = theirs.get(flag) if isinstance(theirs, dict) else None
        if then != now:
            raise ResumeError(
                f"the checkpoints in {checkpoints} began with {flag} {then!s:.100}, and now it is {now!s:.100}. "
                "Resume with the flags it began with, or give another --out."
            )


def build_trainer(
    model: LiteModel, recipe: LiteRecipe, sequences: PackedStreams, out: Path, seed: int, save_steps: int
) -> LiteTrainer:
    """Return transformers' Trainer for a recipe; accelerate's configuration decides where it runs."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=max(1, round(0.03 * recipe.steps)),
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=in_bfloat16(),
        use_cpu=not cuda,
        save_steps=save_steps,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        eval_strategy="no",
        ddp_timeout=round(PATIENCE.total_seconds()),  # the others wait while the first measures
    )
    trainer = LiteTrainer(model=model, args=arguments, train_dataset=sequences, recipe=recipe)
    trainer.remove_callback(PrinterCallback)
    return trainer


class LiteTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that saves only what is trained, reads sequences in their own order, and refuses a loss of NaN."""

    def __init__(self, *, recipe: LiteRecipe, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._recipe = recipe
        self._shapes = {name: tuple(tensor.shape) for name, tensor in trained_weights(self.model).items()}
        if self.is_fsdp_enabled:
            check_plugin(self.accelerator.state.fsdp_plugin)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, so accumulation averages it

    def create_optimizer(self, model: Any = None) -> Any:
        """Give the shortcuts a learning rate of their own."""
        if getattr(self, "optimizer", None) is None:
            maps, recipe = list(self.model.shortcuts.parameters()), self._recipe
            own = set(map(id, maps))
            rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
            rates = ((rest, recipe.learning_rate), (maps, recipe.shortcut_learning_rate))
            groups = [{"params": parameters, "lr": rate} for parameters, rate in rates if parameters]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Take a step; raise :class:`TrainingError` where the loss is no number."""
        loss: Tensor = super().training_step(*arguments, **named)
        if not math.isfinite(loss.item()):
            kept = last_checkpoint(Path(self.args.output_dir))
            left = (
                f"the last good checkpoint is {kept}; `--resume` goes on from it" if kept else "no checkpoint is kept"
            )
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; {left}. "
                "Lower --learning-rate, or give other data."
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self._trained(state_dict), folder / "model.safetensors")

    def _trained(self, whole: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the weights that are trained: of all of them, where FSDP has spread the model's own."""
        return trained_weights(self.model) if whole is None else {name: whole[name] for name in self._shapes}

    def finished_weights(self) -> dict[str, Tensor]:
        """Return the weights that were trained, in the first process; where FSDP has spread them, all must ask."""
        if not self.is_fsdp_enabled:
            return self._trained(None)
        whole: dict[str, Any] = get_model_state_dict(self.model, options=WHOLE)
        return self._trained(whole) if self.args.should_save else {}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _damaged(resume_from_checkpoint):
            state = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        if {name: tuple(tensor.shape) for name, tensor in state.items()} != self._shapes:
            raise ResumeError(f"{resume_from_checkpoint} holds other weights than are trained. Give another --out.")
        if self.is_fsdp_enabled:
            set_model_state_dict(self.model, state, options=StateDictOptions(full_state_dict=True, strict=False))
        else:
            self.model.load_state_dict(state, strict=False)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        wrapped: Any = self.optimizer  # by accelerate
        moments = get_optimizer_state_dict(self.model, wrapped.optimizer, options=WHOLE)
        if self.args.should_save:
            torch.save(moments, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _damaged(checkpoint):
            if not self.is_fsdp_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
            elif checkpoint is not None:
                moments, rates = (
                    torch.load(Path(checkpoint) / f"{name}.pt", map_location="cpu", weights_only=True)
                    for name in ("optimizer", "scheduler")
                )
                wrapped: Any = self.optimizer  # by accelerate
                options = StateDictOptions(full_state_dict=True)
                set_optimizer_state_dict(self.model, wrapped.optimizer, moments, options=options)
                self.lr_scheduler.load_state_dict(rates)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _damaged(checkpoint):
            super()._load_rng_state(checkpoint)


def _damaged(checkpoint: str | None) -> AbstractContextManager[None]:
    return library_border(
        f"the checkpoint {checkpoint} is damaged", "Remove it to resume from the one before.", TrainingError
    )


def trained_weights(model: LiteModel) -> dict[str, Tensor]:
    """Return the parameters that are trained, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            found[name] = parameter.detach().contiguous()
    return found


class StepWatcher(TrainerCallback):  # type: ignore[misc]
    """Logs every step's losses after those of an earlier tuning, and reports progress."""

    def __init__(
        self,
        model: LiteModel,
        recipe: LiteRecipe,
        log: Path,
        progress: Progress,
        stop: threading.Event,
        before: tuple[int, int] = (0, 0),
    ) -> None:
        self._model, self._recipe, self._log, self._watch, self._stop = model, recipe, log, progress, stop
        self._steps_before, self._tokens_before = before
        self._losses: dict[int, list[float]] = {}
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the losses of a micro-batch."""
        for layer, loss in self._model.last_losses.items():
            self._losses.setdefault(layer, []).append(loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the step, each exit's loss a mean over all micro-batches it was in; stop where that was asked for."""
        took = time.perf_counter() - self._since
        self.on_substep_end(args, state, control)
        sums = torch.zeros(self._model.num_layers + 1, 2, dtype=torch.float64)  # of losses, and how many, by layer
        for layer, values in self._losses.items():
            sums[layer, 0], sums[layer, 1] = sum(values), len(values)
        sums[0, 1] = self._stop.is_set()  # no process stops alone
        self._losses.clear()
        sums = sum_over_all(sums, args.device)
        losses = {layer: (sums[layer, 0] / sums[layer, 1]).item() for layer in range(1, len(sums)) if sums[layer, 1]}
        if sums[0, 1]:
            control.should_save = control.should_training_stop = True
        if not state.is_world_process_zero:
            return
        tokens = self._recipe.tokens_per_step * args.world_size
        line = {
            "step": self._steps_before + state.global_step,
            "tokens": self._tokens_before + state.global_step * tokens,
            "seconds": round(took, 3),
            "cross_entropy": {str(layer): round(value, 4) for layer, value in losses.items()},
        }
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        rate = tokens / took
        self._watch.step(state.global_step, f"last layer {losses[self._model.num_layers]:.3f} nats, {rate:.0f} tok/s")
