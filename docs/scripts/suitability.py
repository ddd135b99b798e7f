"""Does ``harness suitability`` predict what runs gain? Rank correlation over models and exit sets.

    .venv/bin/python docs/scripts/suitability.py [FOLDER]         on two idle cores about an hour

Every pair of a model and its exit points is predicted on documents of the validation split, and decoded live on the
test split under a fixed list of strategies. Realised is the largest speed-up of a setting that keeps nine tokens in ten
(lossy, of its own text), and of drafts that are verified (lossless); full depth itself is none of either, so that
losses are ranked, too. What is in FOLDER (default: runs/suitability) is left alone, and what is missing is made: stop
it and start it again. ``--time`` compares in time in place of bytes read: for a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr

from harness.contracts import KVFacts
from harness.models.catalogue import SMOLLM2_135M
from harness.models.source import snapshot
from harness.records import Manifest, SampleRecord
from reports.metrics.byte_model import decode_bytes

KEEP = 0.9
MODEL = "smollm2-135m"
LOSSY = ("fixed depth", "check by the LM head")
SINGLE = "one check by the LM head"
"""What a check at every exit point is called where there is one."""
LOSSLESS = ("drafts of fixed length", "drafts while sure")
PRETRAINED = ("--weights", "pretrained")
SHARED = ("--exit-head", "shared")
STEPS = (8, 32)
"""Of tuning, in two small adapters."""
LAYERS = 24
"""Of the model whose top is cut off."""
KV = KVFacts(defers=True)
"""Of ``recompute``, under which everything runs."""
HARNESS = str(Path(sys.executable).with_name("harness"))


@dataclass(frozen=True)
class Pair:
    """A model and its exit set."""

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
    parser.add_argument("--sources", nargs=2, default=("embedded", "embedded"), metavar=("PREDICT", "RUN"))
    parser.add_argument("--batch-size", type=int, default=1, help="of runs: bytes do not depend on it, times do")
    parser.add_argument("--without", nargs="*", default=[], metavar="PREFIX", help="pairs to leave out")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=15)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [pair for pair in pairs(folder) if not pair.name.startswith(tuple(given.without))]
    _models(folder, {pair.name.rpartition("-")[0] for pair in wanted})
    rows = []
    for pair in wanted:
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


def _models(folder: Path, needed: set[str]) -> None:
    """Make maps, adapters and the pruned model."""
    if "base-maps" in needed and not (folder / "maps" / "shortcut.json").is_file():
        trace = folder / "trace"
        more = ("--resume",) if (trace / "index.json").is_file() else ()
        _harness("trace", *PRETRAINED, *SHARED, "--documents", 12, "--length", 384, "--out", trace, *more)
        _harness("train", "shortcut", "--traces", trace, "--out", folder / "maps")
    for steps in STEPS:
        out = folder / f"lite-{steps}"
        if f"lite-{steps}" in needed and not (out / "adapter.json").is_file():
            small = ("--length", 128, "--batch", 4, "--documents", 60, "--exit-head", "shared")
            more = ("--resume",) if out.is_dir() else ()
            _harness("train", "lite", "--steps", steps, *small, "--out", out, *more)
    if "pruned" in needed and not (folder / "pruned" / "config.json").is_file():
        _cut(folder / "pruned")


def _cut(folder: Path) -> None:
    """Write the default model without its top layers."""
    assert SMOLLM2_135M.wheel is not None
    source = snapshot(SMOLLM2_135M.wheel)
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS}
    tensors = load_file(source / "model.safetensors")
    above = re.compile(r"layers\.(\d+)\.")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if (found := above.search(name)) is None or int(found[1]) < LAYERS
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*token*"):
        shutil.copy(file, folder)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def _predicted(pair: Pair, folder: Path, given: argparse.Namespace) -> tuple[float, float, float]:
    """Return the predicted lossy and lossless speed-up with the model's own head, and the layers an oracle skips."""
    out = folder / f"predicted-{'time-' if given.time else ''}{pair.name}"
    if not (out / "suitability.json").is_file():
        costs = "--measure-costs" if given.time else "--no-measure-costs"
        of = (
            "--documents",
            given.documents,
            "--length",
            given.length,
            "--task",
            "py150",
            "--split",
            "validation",
            "--source",
            given.sources[0],
        )
        _harness("suitability", *pair.asked, *of, "--keep", KEEP, costs, "--out", out)
    found = json.loads((out / "suitability.json").read_text())
    own = next(head for head in found["heads"] if head["own"])
    by = "time_speedup" if given.time else "bytes_speedup"

    def best(families: Sequence[str]) -> float:
        own_chances = (one for one in found["chances"] if one["head"] == own["name"])
        return max(float(one[by]) for one in own_chances if one["family"] in families)

    lossy = LOSSY if len(pair.points) > 1 else (*LOSSY, SINGLE)
    return best(lossy), best(LOSSLESS), float(own["oracle_skip"])


def _realised(pair: Pair, folder: Path, given: argparse.Namespace) -> tuple[float, float]:
    """Return the largest lossy and lossless speed-up of a run."""
    out = folder / f"realised-{pair.name}"
    if not (out / "summary.json").is_file():
        middle, last = pair.points[len(pair.points) // 2], pair.points[-1]
        drafting = dict.fromkeys(f"layerskip:layer={layer}:length=1,3" for layer in (middle, last))
        strategies = (
            *(f"fixed:layer={layer}" for layer in pair.points[-2:]),
            "confidence:threshold=1,0.99,0.95,0.85,0.7",
            *drafting,
            "confidence:threshold=0.95@lossless",
        )
        if out.is_dir():
            _harness("run", "--resume", out)
        else:
            _harness(
                "run", *pair.asked, *(word for one in strategies for word in ("--strategy", one)),
                "--limit", given.limit, "--max-new-tokens", given.new_tokens, "--kv", "recompute",
                "--draft-head", "full", "--energy", "none", "--weights-format", "float32", "--idle-s", 0,
                "--batch-size", given.batch_size, "--source", given.sources[1], "--out", out,
            )  # fmt: skip
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    samples: dict[str, list[SampleRecord]] = {}
    for line in (out / "samples.jsonl").read_text().splitlines():
        sample = SampleRecord.model_validate_json(line)
        samples.setdefault(sample.operating_point, []).append(sample)

    def cost(name: str) -> float:
        found = samples[name]
        if given.time:
            return sum(sample.token_times_s[-1] - sample.token_times_s[0] for sample in found)
        return sum(decode_bytes(sample, manifest.model, KV) for sample in found) / sum(map(_decoded, found))

    lossy, lossless = [0.0], [0.0]
    for point in manifest.operating_points[1:]:
        gain = cost("full") / cost(point.name)
        if point.lossless:
            lossless.append(gain)
        elif _kept(samples[point.name]) >= KEEP:
            lossy.append(gain)
    return max(lossy), max(lossless)


def _decoded(sample: SampleRecord) -> int:
    return len(sample.token_ids) - 1  # the first one is prefill's


def _kept(samples: Sequence[SampleRecord]) -> float:
    """Return the share of decoded tokens that full depth gives after the same text."""
    pairs = [pair for one in samples for pair in zip(one.token_ids[1:], one.full_depth_ids[1:], strict=False)]
    return sum(a == b for a, b in pairs) / len(pairs)


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
