#!/usr/bin/env bash
# The runs and the questions behind docs/calibration.md: four kinds of documents, each calibrated on and tested on the others.
#
#   docs/scripts/calibration.sh DATA_FOLDER        less than an hour on two cores; tokens do not depend on what else runs
#
# DATA_FOLDER holds CodeXGLUE's rows; `harness` must be on the PATH. What is finished is left alone, what was stopped goes on.
set -euo pipefail
data=$(cd "${1:?give the folder of CodeXGLUE rows}" && pwd)
cd "$(dirname "$0")/../.."

decode() { # KIND OPTION…: full depth and four thresholds, into runs/calibration-KIND
	local out=runs/calibration-$1
	shift
	if [ -f "$out/summary.json" ]; then
		echo "$out is there"
	elif [ -d "$out" ]; then
		harness run --resume "$out"
	else
		harness run --strategy classifier:threshold=0.98,0.9,0.75,0.5 --max-new-tokens 8 --energy none --idle-s 0 "$@" --out "$out"
	fi
}

decode python-rows --task py150 --source "$data" --limit 100
decode java-rows --task javacorpus --source "$data" --limit 100
decode python-files --task py150 --limit 64
decode java-files --task javacorpus --limit 64

kinds=(python-rows java-rows python-files java-files)
for target in agreement=0.85 agreement=0.75 exact_prefix=0.8; do
	for kind in "${kinds[@]}"; do
		against=()
		for other in "${kinds[@]}"; do
			[ "$other" = "$kind" ] || against+=(--against "runs/calibration-$other")
		done
		echo "== $target, calibrated on $kind"
		# where so many documents cannot certify the target, one line says so, and how many it would take
		harness calibrate --resume "runs/calibration-$kind" --strategy classifier --target "$target" --confidence 0.95 \
			"${against[@]}" || true
	done
done
