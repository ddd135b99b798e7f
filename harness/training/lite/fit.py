"""``harness train lite``: data, weights, Trainer, checkpoints, tables before and after, artefacts.

Quality of each exit on held-out text: token accuracy and agreement with the last layer, teacher-forced.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from harness.contracts import ModelRequest
from harness.contracts.recipes import Progress, Silent, Trained, TrainingRun
from harness.decoding.families import head_modules
from harness.errors import ConfigError, ResumeError, TrainingError
from harness.host.files import read_json, refusing, replace_files
from harness.host.libraries import require
from harness.models.artefacts import write_artefact
from harness.models.exit_modules import LINEAR, chosen, shapes_of
from harness.models.facts import PARTS
from harness.models.folder import fingerprint_of_folder, quiet
from harness.models.model import ResolvedModel, resolve
from harness.models.ngrams import NgramIndex, write_index
from harness.models.trained import SCALE, belongs_to, shortcut_path
from harness.records.estimate import MISSING, Estimate
from harness.registry import TASKS
from harness.training.checkpoints import cut_log, stop_on_interrupt
from harness.training.corpus import PackedStreams, Stream, read_streams
from harness.training.identity import identity, provenance
from harness.training.lite.lite_model import LiteModel
from harness.training.lite.start import Start, factor_name, find_start, tuned_whole
from harness.training.lite.trainer import StepWatcher, build_trainer, check_beginning, in_bfloat16, last_checkpoint
from harness.training.processes import is_main, world_size
from harness.training.recipes import Lite, LiteRecipe
from harness.training.shortcut import ShortcutMoments
from reports.statistics.intervals import half_width

POSITIONS = 3072
"""Positions of a stream that are looked at, in equal shares over its documents; fewer where those are short."""
INITIAL_TOKENS = 32_768

Interval: TypeAlias = tuple[float, float]


class ExitRow(TypedDict):
    """One exit on one stream.

    Shares of next tokens that it predicts, and where it predicts what the last layer does, each with its 95 % interval
    over documents, ``None`` where their number allows none; ``tokens`` positions of ``documents`` were looked at.
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

    ``read`` takes tokens ``[1, n]``, ``length`` at most, and returns what the LM head reads at each of ``layers``, and
    at the last layer, which comes on its own; ``streams``: name, and documents of two tokens or more.
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
            row: dict[str, Any] = {
                "stream": name, "layer": layer, "documents": len(documents), "tokens": sum(counts)
            }  # fmt: skip
            for share, found in zip(("accuracy", "agreement"), hits, strict=True):
                row[share], row[f"{share}_interval"] = _share(found[index], sizes)
            table.append(cast("ExitRow", row))
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
    """Return hits over positions, both ``[documents]``, and the interval of that ratio of totals over documents."""
    total = float(sizes.sum())
    share = float(hits.sum()) / total
    influence = ((hits - share * sizes) / total).numpy()
    if len(sizes) < 2 or not influence.any():
        return round(share, 4), None
    reach = half_width(influence, (sizes / total).numpy())
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
        both = (row, later.get((row["stream"], row["layer"])))
        cells = [_cell(each, share) for share in ("accuracy", "agreement") for each in both]
        facts = [row["stream"], row["layer"], row["documents"], row["tokens"], *cells]
        lines.append(f"| {' | '.join(map(str, facts))} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None, share: str) -> str:
    if row is None:
        return MISSING
    interval = row[f"{share}_interval"]
    return Estimate.of(row[share], interval and tuple(interval)).text("{:.3f}")


def train_lite(options: Lite, run: TrainingRun) -> Trained:
    """Tune a model on tasks' documents; of several processes the first measures, writes and reports.

    The folder receives ``checkpoints/``, ``training.jsonl``, ``exits.md`` and the artefacts; or, tuned whole, the
    weights in ``model/`` and ``tuning.json``. With ``start_from``, and with a model that was tuned whole, it reads on
    where that tuning stopped if the documents are the same, and holds out none that it has learned from.
    """
    options = options.under(options.preset)
    recipe = LiteRecipe.part_of(options)
    require("train", "accelerate", *(["peft"] if recipe.method == "lora" else []))
    progress = run.progress if is_main() else Silent()
    tasks = [TASKS.load(name)() for name in options.tasks]
    # bfloat16 would round away whole-weight steps of 1e-5; LoRA's factors are float32 anyway
    dtype = "bfloat16" if recipe.method == "lora" and in_bfloat16() else "float32"
    resolved = resolve(
        ModelRequest(
            options.model, weights=options.weights, dtype=dtype, exit_points=options.exit_points, seed=options.seed,
            exit_head="shared",
        )
    )  # fmt: skip
    info, tokenizer = resolved.info, resolved.tokenizer
    if not info.exit_points:
        raise ConfigError(f"{info.name} has no exit points to train. Give --exit-points.")
    if recipe.length > info.max_positions:
        raise ConfigError(f"--length {recipe.length}: {info.name} has {info.max_positions} positions.")
    shapes_of(recipe.exit_module, info.hidden_size)  # refused now, not after documents are read
    if options.start_from is not None:
        start: Start | None = find_start(options.start_from, info, recipe)
    else:
        start = tuned_whole(Path(resolved.spec.location), info)
    streams = read_streams(
        tasks, options.sources, tokenizer, split=options.split, length=recipe.length, documents=options.documents,
        seed=options.seed, note=progress.stage, known=start.learned if start else frozenset(),
    )  # fmt: skip
    data = [
        {
            "stream": stream.name,
            "split": options.split,
            "fingerprint": stream.source.fingerprint,
            "documents": len(stream.keys),
            "tokens": stream.sequences.numel(),
            "held_out_tokens": sum(map(len, stream.held_out)),
        }
        for stream in streams
    ]
    progress.stage(f"loading {info.name}")
    module, weights_source = resolved.module(progress.stage)
    documents = {key for stream in streams for key in stream.keys} | set(start.facts["documents"] if start else ())
    projects = {name for stream in streams for name in stream.projects}
    projects |= set(start.facts.get("projects", ()) if start else ())
    facts = {
        **identity(info, tokenizer.fingerprint),
        "exit_head": recipe.exit_head,
        "weights_source": weights_source,
        "data": data,
        "documents": sorted(documents),
        "held_out": sorted({key for stream in streams for key in stream.held_out_keys}),
        "projects": sorted(projects),
        "made": provenance(run.command),
    }
    return _tune(options, recipe, resolved, module, streams, start, facts, progress)


def _tune(
    options: Lite, recipe: LiteRecipe, resolved: ResolvedModel, module: Any, streams: Sequence[Stream],
    start: Start | None, facts: Mapping[str, Any], progress: Progress,
) -> Trained:  # fmt: skip
    torch.manual_seed(options.seed)
    out, points, data, log = options.folder, resolved.info.exit_points, facts["data"], options.folder / "training.jsonl"
    kept = _checkpoint(out, options.resume)
    if is_main():
        check_beginning(out / "checkpoints", _beginning(start, recipe, options.seed, data), options.resume)
    held_out = [(stream.name, stream.held_out) for stream in streams]
    shortcuts: Mapping[int, Mapping[str, Tensor]] | None = None
    if start is not None:
        shortcuts = start.shortcuts(points, module.config.hidden_size)
    if shortcuts is None and recipe.exit_head == "shortcut":
        progress.stage("fitting the exits' modules in closed form")
        shortcuts = initial_shortcuts(module, points, streams, recipe.exit_module)
    model = LiteModel(_prepare(module, recipe), points, recipe, shortcuts)
    if start is not None:
        start.load_factors(model)
    before = _before(out, options.resume, lambda: measure(model, held_out, recipe.length, progress, "before"))
    skip = start.sequences_read(data, options.seed, recipe.length) if start else 0
    size = recipe.steps * recipe.batch * recipe.accumulate * world_size()
    sequences = PackedStreams(streams, size, options.seed, skip)
    trainer = build_trainer(model, recipe, sequences, out, options.seed, options.save_steps)
    done = int(kept.name.rpartition("-")[2]) if kept else 0
    behind = (start.facts["steps"], start.facts["tokens"]) if start else (0, 0)
    if is_main():
        source = start.log if start and not options.resume else log
        cut_log(log, lambda line: line["step"] <= behind[0] + done, source)
    progress.begin("tuning", recipe.steps, done)
    with stop_on_interrupt() as stop:
        trainer.add_callback(StepWatcher(model, recipe, log, progress, stop, behind))
        trainer.train(resume_from_checkpoint=str(kept) if kept else None)
    if trainer.state.global_step < recipe.steps:
        return Trained(finished=False)
    weights = trainer.finished_weights() if trainer.is_fsdp_enabled else None
    if not is_main():
        return Trained()
    if weights is not None:  # FSDP has spread the module's own over the processes
        model = LiteModel(_prepare(resolved.module(progress.stage)[0], recipe), points, recipe, shortcuts)
        model.load_state_dict(weights, strict=False)
    after = measure(model, held_out, recipe.length, progress, "after")
    report = render(before, after)
    replace_files({out / "exits.md": f"{report}\n".encode()})
    read = [text.numpy() for text in sequences.texts()]
    if recipe.exit_head == "shortcut":
        read += [first.flatten().numpy() for first in _initial_sequences(streams)]
    index = NgramIndex.union([NgramIndex.of(read), *([start.ngrams()] if start else [])])
    described = {
        **facts,
        "recipe": recipe.model_dump(),
        "seed": options.seed,
        "steps": behind[0] + recipe.steps,
        "tokens": behind[1] + recipe.steps * recipe.tokens_per_step * world_size(),
        "packs_read": skip + len(sequences),
        "exits": {"before": list(before), "after": list(after)},
        **({"start": start.described()} if start else {}),
        "ngrams": write_index(out, index, complete=not start or bool(start.facts["ngrams"].get("complete"))),
    }
    _write(model, recipe, out, described, resolved.tokenizer.wrapped)
    if recipe.method == "lora":
        return Trained(report, f"Adapter, shortcuts, exits.md and training.jsonl are in {out}")
    where = f"use it with --model {out / 'model'} --artefacts {out}, and give what learns from it --out {out}, too"
    return Trained(report, f"The tuned model is {out / 'model'}: {where}")


def _beginning(start: Start | None, recipe: LiteRecipe, seed: int, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a training that is resumed must have begun with, by flag."""
    return {
        "--start-from": start.adapter.sha256 if start and start.adapter else None,
        **{f"--{name.replace('_', '-')}": value for name, value in recipe.model_dump().items()},
        "--seed": seed,
        "a number of processes of": world_size(),
        "the documents of": [
            f"{stream['stream']} ({stream['fingerprint'][:12]}, {stream['documents']} documents)" for stream in data
        ],
    }


def _checkpoint(out: Path, resume: bool) -> Path | None:
    """Make the folder, and return the checkpoint in it to go on from."""
    kept = last_checkpoint(out / "checkpoints")
    if resume and kept is None:
        raise ResumeError(f"{out} holds no checkpoint to resume from. Omit --resume to begin.")
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


def _before(out: Path, resume: bool, compute: Callable[[], tuple[ExitRow, ...]]) -> Sequence[ExitRow]:
    """Return the table before tuning, in the first process: measured once and kept."""
    file = out / "before.json"
    if not is_main():
        return ()
    if resume and file.is_file():
        with refusing(file, TrainingError, "Remove it: it is then measured again."):
            kept: Sequence[ExitRow] = read_json(file)
            return kept
    rows = compute()
    replace_files({file: json.dumps(rows, indent=1).encode()})
    return rows


def initial_shortcuts(
    module: Any, exit_points: Sequence[int], streams: Sequence[Stream], exit_module: str = LINEAR
) -> dict[int, Mapping[str, Tensor]]:
    """Fit each exit's module on the first sequences of every stream; see :class:`ShortcutMoments`."""
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
    kind, size = chosen(exit_module)
    return {layer: kind.begin(fit, size) for layer, fit in moments.solve().items()}


def _initial_sequences(streams: Sequence[Stream]) -> list[Tensor]:
    each = max(1, INITIAL_TOKENS // (streams[0].sequences.shape[1] * len(streams)))
    return [stream.sequences[:each] for stream in streams]


def measure(
    model: LiteModel, held_out: Sequence[tuple[str, Sequence[Tensor]]], length: int, progress: Progress, when: str
) -> tuple[ExitRow, ...]:
    """Return what the exits of a model can do on held-out documents."""
    progress.stage(f"measuring the exits {when} tuning")
    model.eval()
    device = next(model.parameters()).device

    def read(sequences: Tensor) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16(device.type)):
            return model.exit_states(sequences.to(device), model.exit_points)

    rows = exit_table(read, head_modules(model.core).lm_head, model.exit_points, model.num_layers, held_out, length)
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
    with warnings.catch_warnings():  # peft asks transformers under a name that will go
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(module, config)


def _write(model: LiteModel, recipe: LiteRecipe, out: Path, facts: Mapping[str, Any], tokenizer: Any) -> None:
    adapter, belongs = None, dict(facts)
    if recipe.method == "lora":
        factors = {
            factor_name(name): parameter.bfloat16() for name, parameter in model.named_parameters() if ".lora_" in name
        }
        adapter = write_artefact(out / "adapter.json", "adapter", factors, {**facts, "scale": SCALE})
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
            f"{layer}.{name}": tensor.bfloat16()
            for layer, tensors in model.shortcuts.items()
            for name, tensor in cast("nn.ParameterDict", tensors).items()
        }
        belongs["exit_module"] = recipe.exit_module
        belongs["adapter_sha256"] = adapter.sha256 if adapter else None
        path = shortcut_path(out / "shortcut.json", belongs_to(belongs), model.exit_points)
        write_artefact(path, "shortcut", maps, belongs)
        parts |= {f"shortcut{suffix}": path.with_suffix(suffix) for suffix in (".safetensors", ".json")}
    if adapter is None:  # what the model has read is known wherever its folder goes
        (out / "model" / PARTS).mkdir(exist_ok=True)
        replace_files({out / "model" / PARTS / name: file.read_bytes() for name, file in parts.items()})
