"""Exits from the start or afterwards: a small model trained twice on as many tokens, and what its exits are worth.

    .venv/bin/python docs/scripts/from_scratch.py --out FOLDER [--width 256] [--layers 12] [--tokens 4000000]

A Llama's shape with random weights and a byte-level BPE of the train splits is trained with the last layer's loss on
80 % of the tokens and then with that of all exits (LITE) on the rest, and with exits and layer dropout from the start
(LayerSkip). Seed and order of the data are the same, and so are the tokens; the loss of all exits takes more time for
one. Each model is then traced on documents of the test splits, and ``layerskip`` replayed losslessly behind their
beginnings. The same command goes on after anything. Writes ``from-scratch.json`` and prints two tables: agreement with
the last layer by exit, the mean depth of an oracle, the last layer's share of right next tokens; and tokens per
verification by exit and draft length, with the speed-up that bytes read say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from exits import measured, table, traced, write
from harness.contracts.recipes import Silent, TrainingRun
from harness.errors import HarnessError
from harness.models.facts import PARTS
from harness.registry import TASKS
from harness.replay.options import SweepOptions
from harness.replay.records import SweepRow
from harness.replay.sweep import sweep
from harness.training.corpus import read_corpora
from harness.training.lite.trainer import last_checkpoint
from harness.training.recipes import Lite

NAME, END = "from-scratch", "<|endoftext|>"
PLAIN = 0.8
"""Share of the tokens that are read without exits before LITE."""
HEAD_WIDTH = 32


def begin(asked: argparse.Namespace) -> Path:
    """Return the folder of the model before training: its configuration, and a tokenizer of the train splits."""
    folder: Path = asked.out / "begin"
    if (folder / "tokenizer.json").is_file():
        return folder
    tasks = [TASKS.load(name)() for name in asked.task]
    corpora = read_corpora(
        tasks, asked.source, "train", limit=asked.documents, seed=asked.seed, note=partial(print, file=sys.stderr)
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=asked.vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((one.text for _, corpus in corpora for one in corpus.documents), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    config = LlamaConfig(
        vocab_size=len(wrapped), hidden_size=asked.width, num_hidden_layers=asked.layers,
        num_attention_heads=asked.width // HEAD_WIDTH, intermediate_size=32 * round(asked.width / 12),
        max_position_embeddings=asked.length, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=wrapped.eos_token_id,
    )  # fmt: skip
    config.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def train(asked: argparse.Namespace, name: str, **options: Any) -> Path:
    """Return the folder of a trained model, which is made or finished where it is not there."""
    out: Path = asked.out / name
    if not (out / "model" / PARTS / "tuning.json").is_file():
        given = {
            "tasks": asked.task, "sources": asked.source, "documents": asked.documents, "seed": asked.seed,
            "length": asked.length, "batch": asked.batch, "exit_points": "all", "out": out,
            "resume": last_checkpoint(out / "checkpoints") is not None,
        }  # fmt: skip
        if not Lite.build({**given, **options}).train(TrainingRun("lite", " ".join(sys.argv))).finished:
            sys.exit("Stopped; the checkpoint is kept. Go on with the same command.")
    return out / "model"


def trained(asked: argparse.Namespace) -> dict[str, Path]:
    """Return what the trainings made, by name: without exits, then with them, and with them from the start."""
    steps = asked.tokens // (asked.length * asked.batch)
    alone = round(PLAIN * steps)
    scratch = {"preset": "layerskip", "model": str(begin(asked)), "learning_rate": asked.learning_rate}
    plain = train(asked, "plain", **scratch, steps=alone, weights_rule="last", layer_dropout=0.0)
    lite = train(
        asked, "lite", preset="paper", model=str(plain), learning_rate=asked.tuning_rate, schedule="cosine",
        steps=steps - alone, accumulate=1, checkpointing=False,
    )  # fmt: skip
    skip = train(asked, "layerskip", **scratch, steps=steps, layer_dropout=asked.layer_dropout)
    return {"plain": plain, "plain, then LITE": lite, "LayerSkip": skip}


def drafts(asked: argparse.Namespace, model: Path) -> list[SweepRow]:
    """Return ``layerskip`` at each exit and draft length behind beginnings of the test splits, replayed losslessly."""
    layers, lengths = (",".join(map(str, some)) for some in (asked.exit, asked.draft))
    options = SweepOptions(
        replay=model.parent / "drafts", model=str(model), strategies=(f"layerskip:layer={layers}:length={lengths}",),
        decode="lossless", document_split="all", references=False,
    )  # fmt: skip
    rows = sweep(options, progress=Silent()).sweep.rows
    return [row for row in rows if row.strategy == "layerskip"]


def drafts_table(rows: Sequence[tuple[str, SweepRow]]) -> str:
    """Return tokens per verification as Markdown, a line for each model and exit."""
    lengths = sorted({row.options["length"] for _, row in rows})
    lines = [f"| trained | exit | {' | '.join(map(str, lengths))} |", f"|---|--:|{'--:|' * len(lengths)}"]
    cells: dict[tuple[str, int], dict[int, str]] = {}
    for name, row in rows:
        cell = f"{row.tokens_per_verification:.2f} ({row.expected_speedup:.2f}×)"
        cells.setdefault((name, row.options["layer"]), {})[row.options["length"]] = cell
    for (name, layer), found in cells.items():
        lines.append(f"| {name} | {layer} | {' | '.join(found[length] for length in lengths)} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--task", nargs="+", default=["py150", "javacorpus"])
    parser.add_argument("--source", nargs="+", default=["embedded"])
    parser.add_argument("--documents", type=int, help="of each task and source to learn from; default: all")
    parser.add_argument("--width", type=int, default=256, help=f"of the hidden state; a multiple of {HEAD_WIDTH}")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer")
    parser.add_argument("--tokens", type=int, default=4_000_000, help="that either model reads in training")
    parser.add_argument("--length", type=int, default=512, help="tokens of a packed sequence, and of a traced document")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of both models")
    parser.add_argument("--tuning-rate", type=float, default=3e-4, help="of LITE behind the first")
    parser.add_argument("--layer-dropout", type=float, default=0.1, help="of the second: its p_max")
    parser.add_argument("--test-documents", type=int, default=60, help="of each task and source")
    parser.add_argument("--new-tokens", type=int, default=64, help="behind a document's beginning, for drafts")
    parser.add_argument("--exit", type=int, nargs="+", default=[2, 3, 4, 6, 8], help="layers that draft")
    parser.add_argument("--draft", type=int, nargs="+", default=[1, 2, 4, 6], help="lengths of drafts")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(given)
    rows: list[dict[str, Any]] = []
    drafted: list[tuple[str, SweepRow]] = []
    for name, model in trained(asked).items():
        settings: dict[str, Any] = {
            "model": str(model), "tasks": asked.task, "sources": asked.source, "documents": asked.test_documents,
            "length": asked.length, "split": "test", "exit_points": "all", "exit_head": "shared", "seed": asked.seed,
        }  # fmt: skip
        rows.append({"trained": name} | measured(traced(model.parent / "test", **settings)))
        traced(model.parent / "drafts", new_tokens=asked.new_tokens, **settings)
        drafted += [(name, row) for row in drafts(asked, model)]
    written = {"exits": rows, "drafts": [{"trained": name} | row.model_dump() for name, row in drafted]}
    write(asked.out / f"{NAME}.json", written)
    print(f"{table(rows, ['trained'])}\n\n{drafts_table(drafted)}")


if __name__ == "__main__":
    try:
        main()
    except HarnessError as error:
        sys.exit(str(error))
