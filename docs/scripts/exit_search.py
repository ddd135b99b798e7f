"""Which exit module, on which weights, towards which target, makes exits agree: a grid at one small budget.

    .venv/bin/python docs/scripts/exit_search.py --out FOLDER [--source embedded] [--module linear mlp] [--steps 300]

The weights run once over each text: documents of the train splits, and what the model itself writes behind their
beginnings. On frozen weights, as they come or as they were tuned before, all cells learn from those kept states; LoRA
tunes the weights along, on documents alone. A step's loss is of equally many tokens in either. Every cell is measured
on documents of the test splits. Cells that FOLDER has are not made again. Writes ``exit-search.json`` there and prints
the table: agreement with the same weights' last layer by exit, the mean depth of an oracle, by kind of text too, the
last layer's share of right next tokens, and what reading an exit's module costs in layers.
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
from harness.models.artefacts import read_artefact
from harness.models.model import resolve
from harness.training.options import TraceCommand
from harness.training.recipes import Lite, Shortcut

NAME = "exit-search"
TARGETS = {"text": 0.0, "both": 0.5, "last": 1.0}
"""Share of the loss that follows the last layer's distribution, not the next token."""
PACKED, LOOKED_AT = 256, 0.5  # tokens of a sequence of LoRA's, and the share of them that its loss looks at
WEIGHTS: dict[str, dict[str, str]] = {
    "frozen": {"weights": "pretrained", "exit_head": "shared"}, "tuned": {"weights": "tuned"}
}  # fmt: skip
COST = "costs layers"


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
    run = TrainingRun("lite" if cell.base == "lora" else "shortcut", " ".join(sys.argv))
    settings = {
        "model": asked.model, "out": out, "seed": asked.seed, "steps": asked.steps, "exit_module": cell.module,
        "distill": TARGETS[cell.target],
    }  # fmt: skip
    if cell.base != "lora":
        more = {"traces": asked.out / f"{cell.base}-{cell.text}", "batch": asked.tokens, "learning_rate": cell.rate}
        Shortcut.build({**settings, **more}).train(run)
        return
    more = {
        "tasks": asked.task, "sources": asked.source, "documents": asked.documents, "preset": "lora",
        "length": PACKED, "token_share": LOOKED_AT, "batch": max(1, round(asked.tokens / (PACKED * LOOKED_AT))),
        "shortcut_learning_rate": cell.rate,
    }  # fmt: skip
    Lite.build({**settings, **more}).train(run)


def search(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Make what is not there yet, and return a row for each of the weights as they come and one for each cell."""
    settings: dict[str, Any] = {
        "model": asked.model, "tasks": asked.task, "sources": asked.source, "documents": asked.documents,
        "length": asked.length, "seed": asked.seed,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    tests = {}
    for base, weights in WEIGHTS.items():
        if base in asked.base:
            for text in asked.text:
                own = {"new_tokens": asked.new_tokens} if text == "own" else {}
                traced(asked.out / f"{base}-{text}", **own, **settings, **weights)
            tests[base] = traced(asked.out / f"{base}-test", split="test", **settings, **weights)
            rows.append({"base": base} | measured(tests[base]))
    for cell in cells(asked):
        folder = asked.out / cell.name
        if not (folder / "shortcut.json").is_file():
            train(cell, asked, folder)
        if cell.base == "lora":
            own = {"artefacts": str(folder), "weights": "tuned", "exit_head": "shortcut"}
            info = resolve(TraceCommand.build({"model": asked.model, **own}).request()).info
            cost = info.shortcut_bytes / info.layer_bytes
            found = measured(traced(folder / "test", split="test", **settings, **own))
        else:
            cost = read_artefact(folder / "shortcut.json", "shortcut").facts["layers"]
            found = measured(tests[cell.base], asked.model, folder / "shortcut.json")
        rows.append(asdict(cell) | {COST: f"{cost:.3f}"} | found)
        print(f"{cell.name}: an oracle runs {rows[-1]['oracle'].value:.2f} layers", file=sys.stderr, flush=True)
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
    parser.add_argument("--documents", type=int, default=20, help="of each task and source")
    parser.add_argument("--length", type=int, default=384, help="tokens a document is cut at")
    parser.add_argument("--module", nargs="+", default=["linear", "mlp/256"])
    parser.add_argument("--base", nargs="+", default=["frozen", "lora"], choices=[*WEIGHTS, "lora"])
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--text", nargs="+", default=["documents", "own"], choices=["documents", "own"])
    parser.add_argument("--rate", nargs="+", type=float, default=[2e-4, 5e-4, 2e-3], help="of the exit modules")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=256, help="of a step's loss")
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
