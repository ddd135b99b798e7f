"""Does ``harness suitability`` predict what runs gain? Rank correlation over models and exit sets.

    .venv/bin/python docs/scripts/suitability.py [FOLDER]         on two idle cores about an hour

Every pair of a model and its exit points is predicted on documents of the validation split, and decoded live on the
test split under a fixed list of strategies, by bytes read. Realised is the largest speed-up of a setting that keeps
nine tokens in ten (lossy, of its own text), and of drafts that are verified (lossless). What is in FOLDER (default:
runs/suitability) is left alone, and what is missing is made: stop it and start it again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from scipy.stats import bootstrap, spearmanr

from harness.contracts import KVFacts
from harness.models.catalogue import SMOLLM2_135M
from harness.models.source import snapshot
from harness.models.weights import read_weights
from harness.records import Manifest, SampleRecord
from reports.metrics.byte_model import decode_bytes

KEEP = 0.9
MODEL = "smollm2-135m"
LOSSY = ("fixed depth", "check by the LM head")
SINGLE = "one check by the LM head"  # what a check at every exit point is called where there is one
LOSSLESS = ("drafts of fixed length", "drafts while sure")
PRETRAINED = ("--weights", "pretrained")
SHARED = ("--exit-head", "shared")
STEPS = (8, 32)  # of tuning, in two small adapters
LAYERS = 24  # of the model whose top is cut off
KV = KVFacts(defers=True)  # of recompute, under which everything runs
HARNESS = str(Path(sys.executable).with_name("harness"))


@dataclass(frozen=True)
class Pair:
    """A model, as ``--model`` takes it, with what else makes it, and its exit set."""

    name: str  # of its files
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
    parser.add_argument("--limit", type=int, default=20, help="samples of a run")
    parser.add_argument("--documents", type=int, default=12, help="of a prediction")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    wanted = list(pairs(given.folder))
    _models(given.folder)
    rows = []
    for pair in wanted:
        rows.append((*_predicted(pair, given), *_realised(pair, given)))
        print(f"| {pair.name} | " + " | ".join(f"{value:.3f}" for value in rows[-1]) + " |", flush=True)
    table = np.array(rows)
    for what, mine, theirs in (("lossy", 0, 3), ("lossless", 1, 4), ("oracle's skip against lossy", 2, 3)):
        both = table[:, [mine, theirs]]
        drawn = bootstrap(
            (both[:, 0], both[:, 1]), _spearman, paired=True, n_resamples=2000, method="percentile", rng=0
        )
        low, high = drawn.confidence_interval
        print(f"{what}: Spearman {_spearman(*both.T):.2f} [{low:.2f}, {high:.2f}], {len(rows)} pairs")


def _spearman(mine: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    return float(spearmanr(mine, theirs).statistic)


def _models(folder: Path) -> None:
    """Make maps, adapters and the default model without its top layers."""
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
            _harness("train", "lite", "--steps", steps, *small, "--out", out, *more)
    pruned = folder / "pruned"
    if not (pruned / "config.json").is_file():
        assert SMOLLM2_135M.gguf is not None
        source = snapshot(SMOLLM2_135M.gguf)
        config = json.loads((source / "config.json").read_text())
        config |= {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS}
        above = re.compile(r"layers\.(\d+)\.")
        tensors = {name: one.detach() for name, one in read_weights(SMOLLM2_135M, "float32")[0].named_parameters()}
        layers = {name: int(found[1]) if (found := above.search(name)) else 0 for name in tensors}
        pruned.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*token*"):
            shutil.copy(file, pruned)
        kept = {name: tensor for name, tensor in tensors.items() if layers[name] < LAYERS}
        save_file(kept, pruned / "model.safetensors", {"format": "pt"})
        (pruned / "config.json").write_text(json.dumps(config))


def _predicted(pair: Pair, given: argparse.Namespace) -> tuple[float, float, float]:
    """Return the predicted lossy and lossless speed-up with the model's own head, and the layers an oracle skips."""
    out = given.folder / f"predicted-{pair.name}"
    if not (out / "suitability.json").is_file():
        _harness(
            "suitability", *pair.asked, "--documents", given.documents, "--length", 256, "--task", "py150", "--split",
            "validation", "--source", "embedded", "--keep", KEEP, "--no-measure-costs", "--out", out,
        )  # fmt: skip
    found = json.loads((out / "suitability.json").read_text())
    own = next(head for head in found["heads"] if head["own"])
    chances = [one for one in found["chances"] if one["head"] == own["name"]]
    lossy = LOSSY if len(pair.points) > 1 else (*LOSSY, SINGLE)
    best = [
        max(float(one["bytes_speedup"]) for one in chances if one["family"] in those) for those in (lossy, LOSSLESS)
    ]
    return best[0], best[1], float(own["oracle_skip"])


def _realised(pair: Pair, given: argparse.Namespace) -> tuple[float, float]:
    """Return the largest lossy and lossless speed-up of a run."""
    out = given.folder / f"realised-{pair.name}"
    if not (out / "summary.json").is_file():
        middle, last = pair.points[len(pair.points) // 2], pair.points[-1]
        drafting = dict.fromkeys(f"layerskip:layer={layer}:length=1,3" for layer in (middle, last))
        fixed = (f"fixed:layer={layer}" for layer in pair.points[-2:])
        strategies = (
            *fixed,
            "confidence:threshold=1,0.99,0.95,0.85,0.7",
            *drafting,
            "confidence:threshold=0.95@lossless",
        )
        if out.is_dir():
            _harness("run", "--resume", out)
        else:
            _harness(
                "run", *pair.asked, *(word for one in strategies for word in ("--strategy", one)),
                "--limit", given.limit, "--max-new-tokens", 15, "--kv", "recompute", "--draft-head", "full",
                "--energy", "none", "--weights-format", "float32", "--idle-s", 0, "--source", "embedded", "--out", out,
            )  # fmt: skip
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    samples: dict[str, list[SampleRecord]] = {}
    for line in (out / "samples.jsonl").read_text().splitlines():
        sample = SampleRecord.model_validate_json(line)
        samples.setdefault(sample.operating_point, []).append(sample)

    def cost(name: str) -> float:
        decoded = sum(len(sample.token_ids) - 1 for sample in samples[name])  # the first one is prefill's
        return sum(decode_bytes(sample, manifest.model, KV) for sample in samples[name]) / decoded

    def kept(name: str) -> float:
        """Return the share of decoded tokens that full depth gives after the same text."""
        pairs = [pair for one in samples[name] for pair in zip(one.token_ids[1:], one.full_depth_ids[1:], strict=False)]
        return sum(a == b for a, b in pairs) / len(pairs)

    lossy, lossless = [0.0], [0.0]
    for point in manifest.operating_points[1:]:
        if point.lossless or kept(point.name) >= KEEP:
            (lossless if point.lossless else lossy).append(cost("full") / cost(point.name))
    return max(lossy), max(lossless)


def _harness(*arguments: object) -> None:
    subprocess.run([HARNESS, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
