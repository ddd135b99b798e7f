#!/usr/bin/env bash
# Everything that the documentation would claim of a GPU, measured on this one; exit code 1 where a claim does not hold.
#
#   docs/scripts/gpu.sh [DEVICE]               runs/gpu-*; about half an hour, and nothing else may use the GPU
#
# Never run by its authors, who have no GPU: docs/gpu.md says what was tested instead. `harness` and `python` must be
# those of the environment (. .venv/bin/activate), torch a build for CUDA.
set -euo pipefail
device=${1:-cuda}
cd "$(dirname "$0")/../.."
python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch sees no CUDA device: install a build for CUDA")'
nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.memory --format=csv

once() { # NAME COMMAND…: measure into runs/NAME
	local out=runs/$1
	shift
	if [ -e "$out/summary.json" ]; then
		echo "$out is there"
	elif [ -d "$out" ]; then
		harness "$1" --resume "$out"
	else
		harness "$@" --out "$out"
	fi
}

# 1. What is computed: the same tokens by graphs and by single kernels, and how often the host waits.
python -m pytest -q -rs -m gpu tests/decoding

# 2. The machine: bandwidth, sensors, the meter's tick; then full depth against itself.
mkdir -p runs
harness doctor --device "$device" --dtype bfloat16 --energy nvml --json > runs/gpu-doctor.json
harness doctor --aa --device "$device" --dtype bfloat16 --energy nvml --max-new-tokens 64 --json > runs/gpu-aa.json

# 3. A model of three billion parameters, one row, random weights: speed and energy, no answers.
model=(--model llama-3.2-3b --weights random --dtype bfloat16 --weights-format bfloat16 --device "$device")
once gpu-3b run "${model[@]}" --energy nvml --strategy fixed:layer=10,14,18,22 --strategy random:probability=0.1 \
	--strategy confidence:threshold=0.9 --max-new-tokens 128 --limit 32

# 4. What graphs save: full depth by graphs and kernel by kernel; then checks that the host reads, and that the device decides.
python - "$device" <<'PY'
import statistics, sys
import torch
import harness
from harness.decoding.engine import Engine
from harness.decoding.graphs import recorder_for
from harness.errors import HarnessError
from strategies.confidence import Confidence
from strategies.full import Full
from strategies.saturation import Saturation

loaded = harness.load("llama-3.2-3b", weights="random", dtype="bfloat16", weights_format="bfloat16", device=sys.argv[1]).loaded
never = (Confidence(threshold=1.0), Saturation(threshold=2.0))  # all that checks cost, and no token leaves
for strategy in (Full(), *never):
    for graphs in ("off", "segments", "conditional"):
        try:
            engine, rates = Engine(loaded.backbone, loaded.info, recorder=recorder_for(loaded.backbone, graphs)), []
        except HarnessError as error:
            print(error)
            continue
        for _ in range(6):
            (row,) = engine.decode([list(range(1, 257))], strategy, kv="recompute", max_new_tokens=[128])
            rates.append((len(row.token_times_s) - 1) / (row.token_times_s[-1] - row.token_times_s[0]))
        name, held = f"{type(strategy).__name__}, --graphs {graphs}", torch.cuda.memory_reserved() / 1e9
        print(f"{name:>34}: {statistics.median(rates[1:]):.1f} tokens/s (first {rates[0]:.1f}, which records), {held:.1f} GB")
        del engine
        torch.cuda.empty_cache()
PY

# 5. The claims.
python - runs/gpu-3b/summary.json runs/gpu-aa.json <<'PY'
import json, sys

rows = json.load(open(sys.argv[1]))["rows"]
claims = []
for row in rows:
    value = lambda name: (row["metrics"].get(name) or {}).get("value")
    name = row["operating_point"]
    claims.append((f"{name}: energy is NVML's", 1.0 if row["energy_source"] == "nvml" and row["energy_measured"] else 0.0, 1.0))
    if name.startswith("full"):
        claims.append((f"{name}: share of memory bandwidth", value("bandwidth_share"), 0.7))
    if name.startswith("fixed"):
        claims.append((f"{name}: share of the speed-up that its bytes predict", value("byte_model_achieved"), 0.9))
for claim, got, least in claims:
    shown = "not measured" if got is None else f"{got:.3f}"
    print(f"{'holds' if got is not None and got >= least else 'FAILS':>5}  {claim}: {shown} (at least {least})")
print("  A/A ", json.load(open(sys.argv[2]))["real"]["verdict"])
sys.exit(any(got is None or got < least for _, got, least in claims))
PY
