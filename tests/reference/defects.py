# ruff: noqa: E501
"""Plants sixty defects, one at a time, in a copy of the tree, and says which of them its tests find.

``python -m tests.reference.defects TREE [--only NAME …] [--jobs N]``: TREE is a checkout; its copy is changed, never it.
A defect is a text of the product and what stands in its place; it must stand there exactly once. The folders of tests
that may find it are run until one fails. To compare two trees, plant the same defects in both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PRODUCT = ("harness", "strategies", "tasks", "reports")
MINUTES = 15


@dataclass(frozen=True)
class Defect:
    """A wrong text in place of a right one; ``tests`` are folders of ``tests/`` that are run, in order."""

    name: str
    right: str
    wrong: str
    tests: str


_DECODING, _REPORTS, _STORE = "decoding", "reports", "store running fuzz"
DEFECTS = (
    # The engine.
    Defect("exit layer off by one in views", "executed so far for this token.\"\"\"\n        return self._layer", "executed so far for this token.\"\"\"\n        return self._layer + 1", _DECODING),
    Defect("due draft layers asked", "exits = UnlessDue(self._exits, due) if due else self._exits", "exits = self._exits", _DECODING),
    Defect("stop at exit after no token", "if row not in self._drafting and self._generations[row].token_ids:", "if row not in self._drafting:", _DECODING),
    Defect("rejected draft token kept", "agrees = one.draft[place : place + 1] == [token]", "agrees = bool(one.draft[place : place + 1])", _DECODING),
    Defect("discarded layers off by one token", "one.layers_discarded += (len(verified) - made) * self._backbone.num_layers", "one.layers_discarded += (len(verified) - made - 1) * self._backbone.num_layers", _DECODING),
    Defect("limit one token late", 'return ("length", "") if len(token_ids) >= facts.limit else None', 'return ("length", "") if len(token_ids) > facts.limit else None', _DECODING),
    Defect("end tokens ignored", "if token_ids[-1] in facts.eos:", "if token_ids[0] in facts.eos:", _DECODING),
    Defect("not finite logits accepted", "if not math.isfinite(logit):\n            self._fail(row, \"logits\", layer, len(one.token_ids) + 1)", "if math.isinf(logit) and logit > 0:\n            self._fail(row, \"logits\", layer, len(one.token_ids) + 1)", _DECODING),
    Defect("padding read as last token", "ends = [row * self._longest + length - 1 for row, length in enumerate(self._lengths)]", "ends = [row * self._longest + self._longest - 1 for row, length in enumerate(self._lengths)]", _DECODING),
    Defect("piece of a prompt loses its mask", "self._mask = None if cache is None or not start else cache.mask(positions, start + self._longest)", "self._mask = None", _DECODING),
    Defect("layers of joined tokens not counted", "self._generations[row].layers_executed += layers * length", "self._generations[row].layers_executed += layers", _DECODING),
    Defect("token sees the next position", "return self._positions[:length] <= positions.unsqueeze(1)\n\n    def mask", "return self._positions[:length] <= positions.unsqueeze(1) + 1\n\n    def mask", _DECODING),
    Defect("prompt wholly reused", "limit = min(self.length, len(prompt) - 1)", "limit = min(self.length, len(prompt))", _DECODING),
    Defect("other owners' prompts reused", "if owner != self.owner:\n            return 0", "if owner is None:\n            return 0", "decoding serving"),
    Defect("wiped too little", "self._cache.wipe(row, kept, max(end, self._written[row]))", "self._cache.wipe(row, kept, end - 1)", _DECODING),
    # KV policies.
    Defect("propagate fills one layer late", "slots.fill(hidden, layer, self._backbone.num_layers)", "slots.fill(hidden, layer + 1, self._backbone.num_layers)", _DECODING),
    Defect("recompute forgets what waits deeper", "stack.append((leaving.layer, [run]))", "stack[:] = [(leaving.layer, [run])]", _DECODING),
    Defect("skip sees holes", "(self._depth[rows, :length] >= layers)", "(self._depth[rows, :length] >= layers - 1)", _DECODING),
    Defect("skipped row's depth of its last occupant", "self._depth[row, :length] = self.batch.num_layers", "self._depth[row, :1] = self.batch.num_layers", _DECODING),
    # Drafts.
    Defect("draft one token too long", "or len(made.draft) >= self._max_draft_tokens", "or len(made.draft) > self._max_draft_tokens", _DECODING),
    Defect("rolled back work off by one", "made.rolled_back = sum(self._work[accepted:], made.rolled_back)", "made.rolled_back = sum(self._work[accepted + 1 :], made.rolled_back)", _DECODING),
    Defect("proposals outside the vocabulary", "if not all(0 <= token < vocab_size for token in proposed):", "if not all(0 <= token <= vocab_size for token in proposed):", _DECODING),
    Defect("look-up takes the shortest match", "for size in reversed(self._sizes):", "for size in self._sizes:", _DECODING),
    # Strategies.
    Defect("confidence strict at its threshold", "return self.reading(view).top_probability >= self.threshold", "return self.reading(view).top_probability > self.threshold", "strategies decoding"),
    Defect("margin decays from a tenth", "decayed = 0.9 * self.threshold + 0.1 * torch.exp(", "decayed = self.threshold + 0.1 * torch.exp(", "strategies"),
    Defect("patience one point early", "for _ in range(self.patience - 1):", "for _ in range(self.patience - 2):", "strategies decoding"),
    Defect("saturation at the first exit", "return torch.zeros(len(view.hidden_state), dtype=torch.bool, device=view.hidden_state.device)", "return torch.ones(len(view.hidden_state), dtype=torch.bool, device=view.hidden_state.device)", "strategies decoding"),
    Defect("layerskip drafts one more", "return len(draft.tokens) >= self._length", "return len(draft.tokens) > self._length", "strategies decoding"),
    # Weights.
    Defect("int8 scale of 128 levels", "LEVELS = 127", "LEVELS = 128", _DECODING),
    # Tasks and scores.
    Defect("edit similarity rounds down", "round(100 * ((length - Indel.distance(text, reference)) / length))", "int(100 * ((length - Indel.distance(text, reference)) / length))", "tasks"),
    Defect("exact match minds spaces", "return float(text.split() == reference.split())", "return float(text == reference)", "tasks"),
    Defect("token accuracy over what was said", "zip(token_ids, reference_ids, strict=False)) / len(reference_ids)", "zip(token_ids, reference_ids, strict=False)) / max(1, len(token_ids))", "tasks"),
    Defect("literals of strings kept", 'text.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "")', 'text.replace("<NUM_LIT>", "0")', "tasks"),
    Defect("identifiers in strings count", 'words = _WORD.findall(_STRING.sub("", code))', "words = _WORD.findall(code)", "tasks"),
    Defect("prompt keeps its beginning", "prompt_ids = tuple(tokenizer.encode(prompt)[-MAX_CONTEXT:])", "prompt_ids = tuple(tokenizer.encode(prompt)[:MAX_CONTEXT])", "tasks"),
    Defect("short documents scored", "if context < 1 or len(token_ids) < context + new:", "if context < 1 or len(token_ids) < context + 1:", "tasks"),
    Defect("what tuning read is drawn", "elif request.seen and document_key(whole(row)) in request.seen:", "elif request.seen and row.sample_id in request.seen:", "tasks running models"),
    # Statistics and reports.
    Defect("interval a tenth too narrow", "return float(stdtrit(variance**2 / spread, (1 + CONFIDENCE) / 2)) * math.sqrt(variance) if spread else 0.0", "return 0.9 * float(stdtrit(variance**2 / spread, (1 + CONFIDENCE) / 2)) * math.sqrt(variance) if spread else 0.0", _REPORTS),
    Defect("ends of an interval exchanged", "return found / factor, found * factor", "return found * factor, found / factor", _REPORTS),
    Defect("speed-up upside down", "return (baseline / baseline_units) / (other / other_units)", "return (other / other_units) / (baseline / baseline_units)", _REPORTS),
    Defect("repeats taken as independent", "sofar = totals.get(key, Pair(0.0, 0.0, 0.0, 0.0))", "sofar = totals.pop(key, Pair(0.0, 0.0, 0.0, 0.0)) if False else Pair(0.0, 0.0, 0.0, 0.0)", _REPORTS),
    Defect("p-value without the constant e", "return min(1.0, hoeffding, math.e * float(binom.cdf(", "return min(1.0, hoeffding, float(binom.cdf(", "reports calibrating replay"),
    Defect("certified setting too many", "if not found[-1] <= delta:", "if not found[-1] <= 2 * delta:", "reports calibrating replay"),
    Defect("dominated points on the front", "on_front[index] = cost == cost_of_best", "on_front[index] = True", _REPORTS),
    Defect("bound on the front", "return not row.rehearsed", "return True", "reports sweep replay"),
    Defect("random weights on the front", 'if not measured or any(row.weights == "random" for row in measured):', "if not measured:", _REPORTS),
    Defect("cost of a layer row free", '"layer row": self.layer_row,', '"layer row": 0.0,', "decoding sweep suitability replay records"),
    Defect("verifications counted as tokens", "passes, places = self.verifications or tokens, tokens + self.layers_discarded // num_layers", "passes, places = tokens, tokens + self.layers_discarded // num_layers", "records reports sweep replay"),
    # Runs.
    Defect("seal without the samples", "committed.seal = seal_of(committed.seal, [*own, body]) if run else \"\"", "committed.seal = sealed if run else \"\"", _STORE),
    Defect("mixed runs accepted", "    if theirs != run:\n", "    if theirs and not run:\n", _STORE),
    Defect("excess of a lost commit accepted", "if window not in (None, next_window):", "if window is None:", _STORE),
    Defect("resume on other code", "changed = [f\"{name} was {then}, now {today}\" for name, then, today in pairs if then != today]", "changed: list[str] = []", _STORE),
    Defect("resume on another machine", 'SAME_MACHINE = ("cpu", ', 'SAME_MACHINE = (', _STORE),
    Defect("stale summary accepted", "if self.seal and not (seal and summary.records == self.seal):", "if self.seal and not seal:", _STORE),
    Defect("commit not rolled back", "            self._roll_back()  # the remains of an interrupted commit\n", "", _STORE),
    Defect("foreign load not flagged", "FOREIGN_SHARE = 0.05", "FOREIGN_SHARE = 0.5", "metering"),
    # Training.
    Defect("reward of going on at the optimum", "go_on = torch.where(current < optimal, one,", "go_on = torch.where(current <= optimal, one,", "training"),
    # The server.
    Defect("foreign pages served", "listed = \"*\" in self._origins or origin.lower() in self._origins", "listed = True", "serving"),
    Defect("key of any value", "return any(hmac.compare_digest(one, self._key) for one in keys_of(scope))", "return any(True for one in keys_of(scope))", "serving"),
    Defect("body over the cap", "if read > self._cap:", "if read > 2 * self._cap:", "serving"),
    Defect("settings that name files set by requests", "return True\n    return bool(get_args(hint))", "return True\n    return True or bool(get_args(hint))", "serving"),
    # Studies and sweeps.
    Defect("threshold bisected the wrong way", "few, many = (middle, many) if here < target else (few, middle)", "few, many = (few, middle) if here < target else (middle, many)", "sweep replay running"),
    Defect("measured point taken for finished", "said = event is not None and event.what in DONE and event.records_bytes == records_bytes(directory)", "said = event is not None", "study"),
)  # fmt: skip


SINCE = {
    "draft one token too long": ("ends or len(made.draft) >= self._draft_max or", "ends or len(made.draft) > self._draft_max or"),
    "seal without the samples": ("seal = seal_of(seal, [*own, body]) if manifest.run else \"\"", "seal = said if manifest.run else \"\""),
    "mixed runs accepted": ("if window.window != number - 1 or not _are_of(manifest, window, records):", "if window.window != number - 1:"),
    "stale summary accepted": ("if self.seal and summary.records != self.seal:", "if self.seal and not summary.records:"),
    "foreign pages served": ("listed = \"*\" in origins or origin.lower() in origins", "listed = True"),
    "key of any value": ("any(hmac.compare_digest(one, key) for one in keys_of(scope))", "any(True for one in keys_of(scope))"),
    "body over the cap": ("if size > cap:", "if size > 2 * cap:"),
    "p-value without the constant e": ("return min(1.0, hoeffding, math.e * float(bdtr(", "return min(1.0, hoeffding, float(bdtr("),
    "interval a tenth too narrow": ("return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)", "return 0.9 * float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)"),
    "measured point taken for finished": ("return event.records_bytes == _records_bytes(directory) and (directory", "return (directory"),
    "token accuracy over what was said": ("return same / len(wanted) if wanted else None", "return same / max(1, len(completion.token_ids)) if wanted else None"),
    "what tuning read is drawn": ("if request.seen and document_key(whole(row)) in request.seen:", "if request.seen and row.sample_id in request.seen:"),
}  # fmt: skip
"""The same defects in the words of the second half."""


def files_of(tree: Path) -> list[Path]:
    """Return the product's modules."""
    return sorted(file for folder in PRODUCT for file in (tree / folder).rglob("*.py"))


def place_of(defect: Defect, tree: Path) -> tuple[Path, str, str] | None:
    """Return the one module that holds the right text, and both texts; ``None`` where none does, or several."""
    for right, wrong in ((defect.right, defect.wrong), SINCE.get(defect.name, (defect.right, defect.wrong))):
        holding = [file for file in files_of(tree) if right in file.read_text()]
        if len(holding) == 1 and holding[0].read_text().count(right) == 1:
            return holding[0], right, wrong
    return None


def find(defect: Defect, tree: Path) -> tuple[str, float]:
    """Plant a defect in a copy of a tree and run its tests; return what came of it, and the seconds it took."""
    start = time.monotonic()
    place = place_of(defect, tree)
    if place is None:
        return "text not found once", 0.0
    with tempfile.TemporaryDirectory(prefix="defect-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(
            tree, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "build", "__pycache__", ".venv")
        )
        file, right, wrong = place
        planted = copy / file.relative_to(tree)
        planted.write_text(planted.read_text().replace(right, wrong))
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        outcome = "NOT FOUND"
        for area in defect.tests.split():
            if not (copy / "tests" / area).exists():
                continue
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "-m",
                "not slow and not matrix",
                "--timeout=120",
            ]
            try:
                done = subprocess.run(
                    [*command, f"tests/{area}"], cwd=copy, env=environment, capture_output=True, text=True, check=False,
                    timeout=60 * MINUTES,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                outcome = f"undecided after {MINUTES} minutes"
                break
            if done.returncode not in (0, 5):
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                outcome = f"found: {failed[0].partition(' - ')[0] if failed else done.stdout[-200:]!r}"
                break
    return outcome, time.monotonic() - start


def main() -> None:
    """Plant each defect and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tree", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--check", action="store_true", help="say where texts are, and run nothing")
    options = parser.parse_args()
    chosen = [one for one in DEFECTS if not options.only or any(word in one.name for word in options.only)]
    found = 0
    for defect in chosen:
        if options.check:
            place = place_of(defect, options.tree.resolve())
            print(f"{defect.name}: {place[0].relative_to(options.tree.resolve()) if place else 'NOT FOUND ONCE'}")
            continue
        outcome, seconds = find(defect, options.tree.resolve())
        found += outcome.startswith("found")
        print(f"{defect.name}: {outcome} ({seconds:.0f} s)", flush=True)
    if not options.check:
        print(f"{found} of {len(chosen)} found")


if __name__ == "__main__":
    main()
