"""The LITE training job: data, weights, Trainer, checkpoints, tables before and after, artefacts.

Quality of each exit on held-out text: token accuracy and agreement with the last layer, teacher-forced.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import t as student
from torch import Tensor

from harness.contracts.recipes import Progress
from harness.decoding.families import head_modules
from harness.errors import TrainingError
from harness.host.files import read_json, replace_files
from harness.models.artefacts import write_artefact
from harness.models.facts import PARTS
from harness.models.folder import fingerprint_of_folder, quiet
from harness.models.ngrams import NgramIndex, write_index
from harness.models.trained import belongs_to, shortcut_path
from harness.training.checkpoints import stop_on_interrupt
from harness.training.corpus import PackedStreams, Stream
from harness.training.lite.lite_model import LiteModel
from harness.training.lite.start import Start, factor_name
from harness.training.lite.trainer import (
    PROCESSES,
    StepWatcher,
    begin_log,
    build_trainer,
    check_beginning,
    forget_steps_after,
    last_checkpoint,
)
from harness.training.options import LiteRecipe
from harness.training.processes import is_main, world_size
from harness.training.shortcut import ShortcutMoments

POSITIONS = 3072
"""Positions of a stream that are looked at, in equal shares over its documents; fewer where those are short."""
CONFIDENCE = 0.95

Interval: TypeAlias = tuple[float, float]


class ExitRow(TypedDict):
    """One exit on one stream.

    ``accuracy``: share of next tokens it predicts; ``agreement``: share where it predicts what the last layer does;
    each with its 95 % interval over documents, ``None`` where their number allows none. ``documents``: that
    ``tokens`` positions were drawn from.
    """

    stream: str
    layer: int
    documents: int
    tokens: int
    accuracy: float
    accuracy_interval: Interval | None
    agreement: float
    agreement_interval: Interval | None


@torch.inference_mode()
def exit_table(
    read: Callable[[Tensor], tuple[Sequence[Tensor], Tensor]],
    head: Any,
    layers: Sequence[int],
    num_layers: int,
    streams: Sequence[tuple[str, Sequence[Tensor]]],
    length: int,
) -> list[ExitRow]:
    """Measure exits at random positions of every held-out document, the same whenever the documents are the same.

    Args:
        read: tokens ``[1, n]`` → what the LM head reads at each of ``layers``, and at the last layer.
        head: LM head module.
        layers: exits to measure; the last layer comes on its own.
        num_layers: decoder layers.
        streams: name and held-out documents, ``[n]`` each, two tokens or more.
        length: tokens that are read at once: what comes before in a document, no position sees.
    """
    table: list[ExitRow] = []
    for name, documents in streams:
        chance = torch.Generator().manual_seed(0)
        each = math.ceil(POSITIONS / len(documents))
        right, same, counts = [], [], []
        for document in documents:
            tops, labels = [], []
            for piece, places in _drawn(document.long(), length, each, chance):
                states, last = read(piece.unsqueeze(0))
                tops.append(torch.stack([_top(state[0, places.to(state.device)], head) for state in (*states, last)]))
                labels.append(piece[places + 1])
            chosen = torch.cat(tops, dim=1)  # [exits, positions]
            right.append((chosen == torch.cat(labels)).sum(1))
            same.append((chosen == chosen[-1]).sum(1))
            counts.append(chosen.shape[1])
        sizes = torch.tensor(counts, dtype=torch.float64)
        hits = [torch.stack(found, dim=1).double() for found in (right, same)]  # [exits, documents]
        for index, layer in enumerate((*layers, num_layers)):
            accuracy, agreement = (_share(found[index], sizes) for found in hits)
            table.append(
                ExitRow(
                    stream=name,
                    layer=layer,
                    documents=len(documents),
                    tokens=sum(counts),
                    accuracy=accuracy[0],
                    accuracy_interval=accuracy[1],
                    agreement=agreement[0],
                    agreement_interval=agreement[1],
                )
            )
    return table


def _drawn(tokens: Tensor, length: int, count: int, chance: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of a document in random order, and positions in each, until there are so many or no more."""
    pieces = [piece for piece in torch.split(tokens, length) if len(piece) > 1]
    for number in torch.randperm(len(pieces), generator=chance).tolist():
        places = torch.randperm(len(pieces[number]) - 1, generator=chance)[:count]
        yield pieces[number], places
        count -= len(places)
        if not count:
            return


def _top(states: Tensor, head: Any) -> Tensor:
    """Return the LM head's first choice for states ``[n, hidden_size]``, on the CPU."""
    return F.linear(states.to(head.weight.dtype), head.weight, getattr(head, "bias", None)).argmax(-1).cpu()


def _share(hits: Tensor, sizes: Tensor) -> tuple[float, Interval | None]:
    """Return hits over positions, both ``[documents]``, and the interval of that ratio of totals.

    Documents are the independent units: a linearised ratio over clusters of unequal size (Cochran 1977, "Sampling
    Techniques", chapter 9A). Student's t has Kish's effective number of them less one as its degrees of freedom.
    """
    number, total = len(sizes), float(sizes.sum())
    share = float(hits.sum()) / total
    spread = float(((hits - share * sizes) ** 2).sum())
    if number < 2 or not spread:
        return round(share, 4), None
    degrees = max(1.0, total**2 / float((sizes**2).sum()) - 1)
    error = math.sqrt(number / (number - 1) * spread) / total
    reach = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return round(share, 4), (round(max(0.0, share - reach), 4), round(min(1.0, share + reach), 4))


def render(before: Sequence[ExitRow], after: Sequence[ExitRow]) -> str:
    """Return both tables side by side as Markdown, one line per stream and exit."""
    lines = [
        "| held-out text | exit layer | documents | tokens | accuracy [95 % over documents] before | after "
        "| agreement [95 % over documents] before | after |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    later = {(row["stream"], row["layer"]): row for row in after}
    for row in before:
        now = later.get((row["stream"], row["layer"]))
        cells = [
            _cell(row["accuracy"], row["accuracy_interval"]),
            _cell(now["accuracy"], now["accuracy_interval"]) if now else "–",
            _cell(row["agreement"], row["agreement_interval"]),
            _cell(now["agreement"], now["agreement_interval"]) if now else "–",
        ]
        facts = [row["stream"], row["layer"], row["documents"], row["tokens"], *cells]
        lines.append(f"| {' | '.join(map(str, facts))} |")
    return "\n".join(lines)


def _cell(share: float, interval: Interval | None) -> str:
    return f"{share:.3f}" if interval is None else f"{share:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


INITIAL_TOKENS = 32_768


@dataclass(frozen=True)
class FitResult:
    """The result of tuning.

    Attributes:
        finished: false when it was interrupted; the checkpoint continues it.
        before, after: what each exit could do; see :mod:`harness.training.lite.fit`.
        report: both as Markdown; empty in all processes but the first.
        recipe: how it was tuned.
    """

    finished: bool
    before: tuple[ExitRow, ...]
    after: tuple[ExitRow, ...]
    report: str
    recipe: LiteRecipe


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
    progress: Progress,
    start: Start | None = None,
    skip: int = 0,
    reread: Callable[[], Any] | None = None,
    tokenizer: Any,
) -> FitResult:
    """Tune a model and write what came of it to a folder.

    Several processes may do it together; the first of them measures and writes.

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
        progress: is told how it goes on.
        start: begin with these factors and shortcuts; the log goes on from theirs.
        skip: sequences that it has read already.
        reread: reads the module again, where FSDP has spread its weights over processes.
        tokenizer: of transformers; lies beside the weights in ``model/``.

    Raises:
        ArtefactError: the start's factors are those of another model.
        TrainingError: the loss is not finite; or there is no checkpoint to resume from, one of another recipe,
            or one that would be overwritten.
    """
    torch.manual_seed(seed)
    kept = _checkpoint(out, resume)
    if is_main():
        check_beginning(out / "checkpoints", _beginning(start, recipe, seed, facts["data"]), resume)
    held_out = [(stream.name, stream.held_out) for stream in streams]
    shortcuts = None
    if start is not None:
        shortcuts = start.shortcuts(exit_points, module.config.hidden_size)
    elif recipe.exit_head == "shortcut":
        progress.stage("fitting linear shortcuts in closed form")
        shortcuts = initial_shortcuts(module, exit_points, streams)
    model = LiteModel(_prepare(module, recipe), exit_points, recipe, shortcuts)
    if start is not None:
        start.load_factors(model)
    before: tuple[ExitRow, ...] = ()
    if is_main():
        what = "measuring the exits before tuning"
        before = _before(out, resume, lambda: measure(model, held_out, recipe.length, progress, what))
    sequences = PackedStreams(streams, recipe.steps * recipe.batch * recipe.accumulate * world_size(), seed, skip)
    trainer = build_trainer(model, recipe, sequences, out, seed, save_steps)
    done = int(kept.name.rpartition("-")[2]) if kept else 0
    behind = (start.steps, start.tokens) if start else (0, 0)
    if is_main():
        if not resume:
            begin_log(out / "training.jsonl", start.log if start else None)
        forget_steps_after(behind[0] + done, out / "training.jsonl")
    progress.begin("tuning", recipe.steps, done)
    with stop_on_interrupt() as stop:
        trainer.add_callback(StepWatcher(model, recipe, out / "training.jsonl", progress, stop, behind))
        trainer.train(resume_from_checkpoint=str(kept) if kept else None)
    if trainer.state.global_step < recipe.steps:
        return FitResult(False, before, (), "", recipe)
    weights = trainer.finished_weights() if trainer.is_fsdp_enabled else None
    if not is_main():
        return FitResult(True, (), (), "", recipe)
    if weights is not None:
        assert reread is not None
        model = LiteModel(_prepare(reread(), recipe), exit_points, recipe, shortcuts)
        model.load_state_dict(weights, strict=False)
    after = measure(model, held_out, recipe.length, progress, "measuring the exits after tuning")
    report = render(before, after)
    replace_files({out / "exits.md": f"{report}\n".encode()})
    described = {
        **facts,
        "recipe": recipe.model_dump(),
        "seed": seed,
        "steps": behind[0] + recipe.steps,
        "tokens": behind[1] + recipe.steps * recipe.tokens_per_step * world_size(),
        "packs_read": skip + len(sequences),
        "exits": {"before": list(before), "after": list(after)},
        **({"start": start.facts()} if start else {}),
        "ngrams": _index(sequences, streams, recipe, out, start, facts["data"], seed),
    }
    _write(model, recipe, out, described, tokenizer)
    return FitResult(True, before, after, report, recipe)


def _checkpoint(out: Path, resume: bool) -> Path | None:
    """Make the folder, and return the checkpoint in it to go on from."""
    kept = last_checkpoint(out / "checkpoints")
    if resume and kept is None:
        raise TrainingError(f"{out} holds no checkpoint to resume from. Omit --resume to begin.")
    if kept and not resume:  # --resume would later go on from whichever has the highest number
        raise TrainingError(
            f"{out} holds checkpoints of an earlier training ({kept}). Add --resume to go on, give another --out, or "
            f"remove {out / 'checkpoints'}."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make {out}: {error.strerror}. Give another --out.") from None
    return kept


def initial_shortcuts(
    module: Any, exit_points: Sequence[int], streams: Sequence[Stream]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Fit each exit's shortcut on the first sequences of every stream; see :class:`ShortcutMoments`."""
    moments = ShortcutMoments(exit_points, int(module.config.hidden_size))
    grabbed: dict[str, Tensor] = {}
    head = head_modules(module)
    reader = head.norm if head.norm is not None else head.project_out

    def grab(_: Any, inputs: tuple[Tensor, ...]) -> None:
        grabbed["last"] = inputs[0]

    hook = reader.register_forward_pre_hook(grab) if reader is not None else None
    with torch.inference_mode():
        for first in _initial_sequences(streams):
            for sequences in torch.split(first.long(), 8):
                out = module.base_model(input_ids=sequences, output_hidden_states=True, use_cache=False)
                last = grabbed["last"] if hook is not None else out.hidden_states[-1]
                moments.add(
                    {layer: out.hidden_states[layer].flatten(0, 1) for layer in exit_points}, last.flatten(0, 1)
                )
    if hook is not None:
        hook.remove()
    return moments.solve()


def _initial_sequences(streams: Sequence[Stream]) -> list[Tensor]:
    each = max(1, INITIAL_TOKENS // (streams[0].sequences.shape[1] * len(streams)))
    return [stream.sequences[:each] for stream in streams]


def _index(
    sequences: PackedStreams,
    streams: Sequence[Stream],
    recipe: LiteRecipe,
    out: Path,
    start: Start | None,
    data: Sequence[Mapping[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """Write the index of all that was read, by the start too; return what the artefacts say of it."""
    read = [text.numpy() for text in sequences.texts()]
    if recipe.exit_head == "shortcut":
        read += [first.flatten().numpy() for first in _initial_sequences(streams)]
    indices, complete = [NgramIndex.of(read)], True
    if start is not None:
        theirs = start.ngrams()
        indices += [theirs] if theirs is not None else []
        complete = start.indexed or start.same_cut(data, seed)
    return write_index(out, NgramIndex.union(indices), complete=complete)


def measure(
    model: LiteModel, held_out: Sequence[tuple[str, Sequence[Tensor]]], length: int, progress: Progress, what: str
) -> tuple[ExitRow, ...]:
    """Return what the exits of a model can do on held-out documents."""
    progress.stage(what)
    model.eval()
    device = next(model.parameters()).device

    def read(sequences: Tensor) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return model.exit_states(sequences.to(device), model.exit_points)

    rows = exit_table(read, head_modules(model.core).lm_head, model.exit_points, model.num_layers, held_out, length)
    model.train()
    return tuple(rows)


def _beginning(start: Start | None, recipe: LiteRecipe, seed: int, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a training that is resumed must have begun with, by flag."""
    return {
        "--start-from": start.adapter.sha256 if start else None,
        **{f"--{name.replace('_', '-')}": value for name, value in recipe.model_dump().items()},
        "--seed": seed,
        PROCESSES: world_size(),
        "the documents of": [
            f"{stream['stream']} ({stream['fingerprint'][:12]}, {stream['documents']} documents)" for stream in data
        ],
    }


def _prepare(module: Any, recipe: LiteRecipe) -> Any:
    module.config.use_cache = False
    if recipe.checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module.enable_input_require_grads()
    if recipe.method == "full":
        return module.requires_grad_(requires_grad=True)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, lora_dropout=0.0, target_modules="all-linear")
    with warnings.catch_warnings():  # peft asks transformers under a name that will go
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(module, config)


def _is_row(row: Any) -> bool:
    """Tell whether a line of the table before tuning is one of this version."""
    if not isinstance(row, dict) or row.keys() != ExitRow.__annotations__.keys():
        return False
    shares = (row["accuracy"], row["agreement"])
    intervals = (row["accuracy_interval"], row["agreement_interval"])
    return (
        isinstance(row["stream"], str)
        and all(type(row[name]) is int for name in ("layer", "documents", "tokens"))
        and all(type(share) in (int, float) for share in shares)
        and all(ends is None or (isinstance(ends, list) and [type(end) for end in ends] == [float] * 2)
                for ends in intervals)
    )  # fmt: skip


def _before(out: Path, resume: bool, compute: Callable[[], tuple[ExitRow, ...]]) -> tuple[ExitRow, ...]:
    """Return the table before tuning; measured once and kept."""
    file = out / "before.json"
    if resume:
        with suppress(OSError, ValueError):
            rows = read_json(file)
            if isinstance(rows, list) and all(_is_row(row) for row in rows):  # else of an older version
                return tuple(rows)
    rows = compute()
    replace_files({file: json.dumps(rows, indent=1).encode()})
    return rows


def _write(model: LiteModel, recipe: LiteRecipe, out: Path, facts: Mapping[str, Any], tokenizer: Any) -> None:
    adapter, belongs = None, dict(facts)
    if recipe.method == "lora":
        factors = {
            factor_name(name): parameter.bfloat16() for name, parameter in model.named_parameters() if ".lora_" in name
        }
        adapter = write_artefact(out / "adapter.json", "adapter", factors, {**facts, "scale": 2.0})
    else:
        with quiet():
            model.core.save_pretrained(out / "model")
            tokenizer.save_pretrained(out / "model")
        # whole weights are a model of their own: shortcuts belong to them, and both models have seen the documents
        belongs["model_fingerprint"] = fingerprint_of_folder(out / "model")
        replace_files({out / "tuning.json": f"{json.dumps(belongs, indent=1)}\n".encode()})
    index = str(facts["ngrams"]["file"])
    parts = {index: out / index, "tuning.json": out / "tuning.json"}
    if model.shortcuts:
        maps = {
            f"{layer}.{part}": getattr(linear, part).bfloat16()
            for layer, linear in model.shortcuts.items()
            for part in ("weight", "bias")
        }
        belongs["adapter_sha256"] = adapter.sha256 if adapter else None
        path = shortcut_path(out / "shortcut.json", belongs_to(belongs), model.exit_points)
        write_artefact(path, "shortcut", maps, belongs)
        parts |= {f"shortcut{suffix}": path.with_suffix(suffix) for suffix in (".safetensors", ".json")}
    if adapter is None:  # what the model has read is known wherever its folder goes
        (out / "model" / PARTS).mkdir(exist_ok=True)
        replace_files({out / "model" / PARTS / name: file.read_bytes() for name, file in parts.items()})
