"""The LITE training job: data, weights, Trainer, checkpoints, tables before and after, artefacts."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from harness.artefacts import write_artefact
from harness.decoding.families import head_modules
from harness.errors import TrainingError
from harness.models import fingerprint
from harness.models.quiet import quiet
from harness.training.corpus import PackedStreams, Stream
from harness.training.exit_table import ExitRow, exit_table, render
from harness.training.least_squares import ShortcutMoments
from harness.training.lite import LiteModel, LiteRecipe
from harness.training.watch import Watch

__all__ = ["FitResult", "fit", "initial_shortcuts"]

INITIAL_TOKENS = 32_768
TABLE_PACKS = 12


@dataclass(frozen=True)
class FitResult:
    """What tuning leaves.

    Attributes:
        finished: false when it was interrupted; the checkpoint continues it.
        before, after: what each exit could do; see :mod:`harness.training.exit_table`.
        report: both as Markdown.
    """

    finished: bool
    before: tuple[ExitRow, ...]
    after: tuple[ExitRow, ...]
    report: str


def fit(
    module: Any,
    exit_points: Sequence[int],
    recipe: LiteRecipe,
    streams: Sequence[Stream],
    out: Path,
    *,
    facts: Mapping[str, Any],
    seed: int,
    save_steps: int,
    resume: bool,
    watch: Watch,
) -> FitResult:
    """Tune a model and write what came of it to a folder.

    Args:
        module: transformers causal LM, on the CPU; moved by accelerate where it wants it.
        exit_points: exits to train.
        recipe: how.
        streams: what to learn from.
        out: receives ``checkpoints/``, ``training.jsonl``, ``exits.md`` and the artefacts; or, tuned whole, the
            weights in ``model/`` and ``tuning.json``, which tells what they were made from.
        facts: what the artefacts say of the model and the data.
        seed: decides order, sampling and initial factors.
        save_steps: steps between checkpoints.
        resume: go on from the last checkpoint in ``out``.
        watch: is told how it goes on.

    Raises:
        TrainingError: the loss is no number any more; or there is no checkpoint to resume from, one of another recipe,
            or one that would be overwritten.
    """
    torch.manual_seed(seed)
    kept = _last_checkpoint(out / "checkpoints")
    if resume and kept is None:
        raise TrainingError(f"{out} holds no checkpoint to resume from. Leave --resume away to begin.")
    if kept and not resume:  # --resume would later go on from whichever has the highest number
        raise TrainingError(
            f"{out} holds checkpoints of an earlier training ({kept}). Add --resume to go on, give another --out, or "
            f"remove {out / 'checkpoints'}."
        )
    last = kept if resume else None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make {out}: {error.strerror}. Give another --out.") from None
    held_out = [(stream.name, stream.held_out[:TABLE_PACKS]) for stream in streams]
    shortcuts = None
    if recipe.exit_head == "shortcut":
        watch.stage("fitting linear shortcuts in closed form")
        shortcuts = initial_shortcuts(module, exit_points, streams)
    model = LiteModel(_prepare(module, recipe), exit_points, recipe, shortcuts)
    before = _before(out, resume, lambda: measure(model, held_out, watch, "measuring the exits before tuning"))
    trainer = _trainer(model, recipe, streams, out, seed, save_steps, watch)
    done = int(Path(last).name.rpartition("-")[2]) if last else 0
    _forget_steps_after(done, out / "training.jsonl")
    watch.begin("tuning", recipe.steps, done)
    with _stop_on_interrupt() as stop:
        trainer.add_callback(_Watcher(model, recipe, out / "training.jsonl", watch, stop))
        trainer.train(resume_from_checkpoint=last)
    if trainer.state.global_step < recipe.steps:
        return FitResult(False, before, (), "")
    after = measure(model, held_out, watch, "measuring the exits after tuning")
    report = render(before, after)
    (out / "exits.md").write_text(report + "\n", encoding="utf-8")
    described = {
        **facts,
        "recipe": asdict(recipe),
        "seed": seed,
        "exits": {"before": list(before), "after": list(after)},
    }
    _write(model, recipe, out, described)
    return FitResult(True, before, after, report)


def initial_shortcuts(
    module: Any, exit_points: Sequence[int], streams: Sequence[Stream]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Fit each exit's map to the last layer on the first packs of every stream; see :class:`ShortcutMoments`."""
    moments = ShortcutMoments(exit_points, int(module.config.hidden_size))
    grabbed: dict[str, Tensor] = {}
    head = head_modules(module)
    reader = head.norm if head.norm is not None else head.project_out

    def grab(_: Any, inputs: tuple[Tensor, ...]) -> None:
        grabbed["last"] = inputs[0]

    hook = reader.register_forward_pre_hook(grab) if reader is not None else None
    length = streams[0].packs.shape[1]
    each = max(1, INITIAL_TOKENS // (length * len(streams)))
    with torch.inference_mode():
        for stream in streams:
            for packs in torch.split(stream.packs[:each].long(), 8):
                out = module.base_model(input_ids=packs, output_hidden_states=True, use_cache=False)
                last = grabbed["last"] if hook is not None else out.hidden_states[-1]
                moments.add(
                    {layer: out.hidden_states[layer].flatten(0, 1) for layer in exit_points}, last.flatten(0, 1)
                )
    if hook is not None:
        hook.remove()
    return moments.solve()


def measure(model: LiteModel, held_out: Sequence[tuple[str, Tensor]], watch: Watch, what: str) -> tuple[ExitRow, ...]:
    """Return what the exits of a model can do on held-out packs."""
    watch.stage(what)
    model.eval()
    device = next(model.parameters()).device

    def read(packs: Tensor) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return model.exit_states(packs.to(device), model.exit_points)

    rows = exit_table(read, head_modules(model.core).lm_head, model.exit_points, model.num_layers, held_out)
    model.train()
    return tuple(rows)


def _prepare(module: Any, recipe: LiteRecipe) -> Any:
    module.config.use_cache = False
    if recipe.checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module.enable_input_require_grads()
    if recipe.method == "full":
        return module.requires_grad_(requires_grad=True)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(module, config)


def _trainer(
    model: LiteModel, recipe: LiteRecipe, streams: Sequence[Stream], out: Path, seed: int, save_steps: int, watch: Watch
) -> _LiteTrainer:
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
        bf16=True,
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
    )
    data = PackedStreams(streams, recipe.steps * recipe.batch * recipe.accumulate, seed)
    trainer = _LiteTrainer(model=model, args=arguments, train_dataset=data, recipe=recipe)
    trainer.remove_callback(PrinterCallback)
    return trainer


class _LiteTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that saves only what is trained, reads packs in their own order, and refuses a loss of NaN."""

    def __init__(self, *, recipe: LiteRecipe, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._recipe = recipe
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, so accumulation averages it

    def create_optimizer(self, model: Any = None) -> Any:
        if getattr(self, "optimizer", None) is None:
            maps = {id(parameter) for parameter in self.model.shortcuts.parameters()}
            rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in maps]
            groups = [
                {"params": rest, "lr": self._recipe.learning_rate},
                {"params": list(self.model.shortcuts.parameters()), "lr": self._recipe.shortcut_learning_rate},
            ]
            self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
        return self.optimizer

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss: Tensor = super().training_step(*arguments, **named)
        if not math.isfinite(loss.item()):
            kept = _last_checkpoint(Path(self.args.output_dir))
            left = (
                f"the last good checkpoint is {kept}; `--resume` goes on from it" if kept else "no checkpoint is kept"
            )
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; {left}. "
                "Lower --learning-rate, or give other data."
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_trained(self.model), folder / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
        ours = {name: tuple(tensor.shape) for name, tensor in _trained(model or self.model).items()}
        if theirs != ours:
            name = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))[0]
            raise TrainingError(
                f"{resume_from_checkpoint} is of another recipe: {name} is {theirs.get(name, 'not in it')}, and now "
                f"{ours.get(name, 'not trained')}. Resume with the flags it began with, or give another --out."
            )
        (model or self.model).load_state_dict(state, strict=False)


def _trained(model: LiteModel) -> dict[str, Tensor]:
    """Return the parameters that are trained, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            found[name] = parameter.detach().contiguous()
    return found


class _Watcher(TrainerCallback):  # type: ignore[misc]
    """Logs every step's losses and tells the one who waits."""

    def __init__(self, model: LiteModel, recipe: LiteRecipe, log: Path, watch: Watch, stop: threading.Event) -> None:
        self._model, self._recipe, self._log, self._watch, self._stop = model, recipe, log, watch, stop
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        took = time.perf_counter() - self._since
        losses = self._model.last_losses
        line = {
            "step": state.global_step,
            "tokens": state.global_step * self._recipe.tokens_per_step,
            "seconds": round(took, 3),
            "cross_entropy": {str(layer): round(value, 4) for layer, value in losses.items()},
        }
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        rate = self._recipe.tokens_per_step / took
        self._watch.step(state.global_step, f"last layer {losses[self._model.num_layers]:.3f} nats, {rate:.0f} tok/s")
        if self._stop.is_set():
            control.should_save = control.should_training_stop = True


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request to stop after this step; the second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _before(out: Path, resume: bool, compute: Callable[[], tuple[ExitRow, ...]]) -> tuple[ExitRow, ...]:
    """Return the table before tuning; measured once and kept, since a resumed model is tuned already."""
    file = out / "before.json"
    if resume and file.is_file():
        return tuple(json.loads(file.read_text(encoding="utf-8")))
    rows = compute()
    file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def _last_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _forget_steps_after(step: int, log: Path) -> None:
    """Drop lines of steps that are done again: after a kill, the log is ahead of the checkpoint."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError):  # a kill breaks a line off
            kept += [line] if json.loads(line)["step"] <= step else []
    log.write_text("".join(kept), encoding="utf-8")


def _write(model: LiteModel, recipe: LiteRecipe, out: Path, facts: Mapping[str, Any]) -> None:
    adapter, belongs = None, dict(facts)
    if recipe.method == "lora":
        factors = {
            name.removeprefix("module.base_model.model.").replace(".default.weight", ""): parameter.bfloat16()
            for name, parameter in model.named_parameters()
            if ".lora_" in name
        }
        adapter = write_artefact(out / "adapter.json", "adapter", factors, {**facts, "scale": 2.0})
    else:
        with quiet():
            model.core.save_pretrained(out / "model")
        # whole weights are a model of their own: maps belong to them, and both models have seen the documents
        belongs["model_fingerprint"] = fingerprint.of_files(sorted((out / "model").glob("*.safetensors")))
        (out / "tuning.json").write_text(json.dumps(belongs, indent=1) + "\n", encoding="utf-8")
    if model.shortcuts:
        maps = {
            f"{layer}.{part}": getattr(linear, part).bfloat16()
            for layer, linear in model.shortcuts.items()
            for part in ("weight", "bias")
        }
        tuned = adapter.sha256 if adapter else None
        write_artefact(out / "shortcut.json", "shortcut", maps, {**belongs, "adapter_sha256": tuned})
