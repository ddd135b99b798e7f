"""Which exit module, on which weights, towards which target, makes exits agree: a grid at one small budget.

    .venv/bin/python docs/scripts/exit_search.py --out FOLDER [--source embedded] [--module linear mlp] [--steps 300]

The base weights run once over each text: documents of the train splits, and what the model itself writes behind their
beginnings. On frozen weights all cells learn from those kept states; LoRA tunes the weights along, on documents alone.
A step's loss is of equally many tokens in either. Every cell is then traced on documents of the test splits. Cells that
FOLDER has are not made again. Writes ``exit-search.json`` there and prints the table: agreement with the same weights'
last layer by exit, the mean depth of an oracle, the last layer's share of right next tokens, and what reading an exit's
module costs in layers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from exits import measured, table, traced, write
from harness.contracts.recipes import TrainingRun
from harness.errors import HarnessError
from harness.models.model import resolve
from harness.training.options import TraceCommand
from harness.training.recipes import Lite, Shortcut

NAME = "exit-search"
TARGETS = {"text": 0.0, "both": 0.5, "last": 1.0}
"""Share of the loss that follows the last layer's distribution, not the next token."""
PACKED, LOOKED_AT = 256, 0.5  # tokens of a sequence of LoRA's, and the share of them that its loss looks at
COST = "costs layers"
BASE = {"weights": "pretrained", "exit_head": "shared"}


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    module: str
    base: str
    target: str
    text: str
    rate: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(map(str, asdict(self).values())).replace("/", "")


def cells(asked: argparse.Namespace) -> Iterator[Cell]:
    """Yield the grid, but for LoRA on the model's own text, which nothing reads."""
    for module, base, target, text, rate in product(asked.module, asked.base, asked.target, asked.text, asked.rate):
        if (base, text) != ("lora", "own"):
            yield Cell(module, base, target, text, rate)


def train(cell: Cell, asked: argparse.Namespace, out: Path) -> None:
    """Train a cell's exits into a folder."""
    run = TrainingRun("shortcut" if cell.base == "frozen" else "lite", " ".join(sys.argv))
    settings = {
        "model": asked.model, "out": out, "seed": asked.seed, "steps": asked.steps, "exit_module": cell.module,
        "distill": TARGETS[cell.target],
    }  # fmt: skip
    if cell.base == "frozen":
        more = {"traces": asked.out / cell.text, "batch": asked.tokens, "learning_rate": cell.rate}
        Shortcut.build({**settings, **more}).train(run)
        return
    more = {
        "tasks": asked.task, "sources": asked.source, "documents": asked.documents, "preset": "lora",
        "length": PACKED, "token_share": LOOKED_AT, "batch": max(1, round(asked.tokens / (PACKED * LOOKED_AT))),
        "shortcut_learning_rate": cell.rate,
    }  # fmt: skip
    Lite.build({**settings, **more}).train(run)


def search(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Make what is not there yet, and return a row for the base weights and one for each cell."""
    settings: dict[str, Any] = {
        "model": asked.model, "tasks": asked.task, "sources": asked.source, "documents": asked.documents,
        "seed": asked.seed,
    }  # fmt: skip
    if "documents" in asked.text or "lora" in asked.base:
        traced(asked.out / "documents", **settings, **BASE)
    if "own" in asked.text:
        traced(asked.out / "own", new_tokens=asked.new_tokens, **settings, **BASE)
    rows: list[dict[str, Any]] = [measured(traced(asked.out / "test", split="test", **settings, **BASE))]
    for cell in cells(asked):
        folder = asked.out / cell.name
        if not (folder / "shortcut.json").is_file():
            train(cell, asked, folder)
        how = {"weights": "pretrained" if cell.base == "frozen" else "tuned", "exit_head": "shortcut"}
        info = resolve(TraceCommand.build({"model": asked.model, "artefacts": str(folder), **how}).request()).info
        seen = traced(folder / "test", split="test", artefacts=str(folder), **settings, **how)
        cost = {COST: f"{info.shortcut_bytes / info.layer_bytes:.3f}"}
        rows.append(asdict(cell) | cost | measured(seen))
        print(f"{cell.name}: an oracle runs {rows[-1]['oracle'].value:.2f} layers", file=sys.stderr)
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", nargs="+", default=["py150", "javacorpus"])
    parser.add_argument("--source", nargs="+", default=["embedded"])
    parser.add_argument("--documents", type=int, default=40, help="of each task and source")
    parser.add_argument("--module", nargs="+", default=["linear", "mlp/256"])
    parser.add_argument("--base", nargs="+", default=["frozen", "lora"], choices=["frozen", "lora"])
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--text", nargs="+", default=["documents", "own"], choices=["documents", "own"])
    parser.add_argument("--rate", nargs="+", type=float, default=[2e-4, 5e-4, 2e-3], help="of the exit modules")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step's loss")
    parser.add_argument("--new-tokens", type=int, default=120, help="of the model's own behind a document's beginning")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(given)
    rows = search(asked)
    write(asked.out / f"{NAME}.json", rows)
    print(table(rows, (*(field.name for field in fields(Cell)), COST)))


if __name__ == "__main__":
    try:
        main()
    except HarnessError as error:
        sys.exit(str(error))
