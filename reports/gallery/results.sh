#!/usr/bin/env bash
# Every run behind the tables of the documentation, in runs/, each once: what is finished is left alone, what was stopped goes on.
#
#   reports/gallery/results.sh DATA_FOLDER        four to five hours on two cores; nothing else may run beside it
#
# DATA_FOLDER holds CodeXGLUE's rows; `harness` must be on the PATH (. .venv/bin/activate).
set -euo pipefail
shopt -s extglob
data=$(cd "${1:?give the folder of CodeXGLUE rows}" && pwd)
cd "$(dirname "$0")/../.."

once() { # NAME COMMAND…: measure into runs/NAME
	local out=runs/$1
	shift
	if compgen -G "$out/@(summary|grid).json" > /dev/null; then
		echo "$out is there"
	elif [ -d "$out" ]; then
		harness "$1" --resume "$out"
	else
		harness "$@" --out "$out"
	fi
}

both=(--task py150 --task javacorpus --limit 100 --dtype bfloat16)
base=(--weights pretrained --exit-head shared)

once demo run
once tuned-embedded run --strategy fixed:layer=14,22,26 --strategy confidence:threshold=0.9 --strategy entropy \
	--strategy classifier --strategy classifier:threshold=1 --strategy lte --strategy rl --strategy rl:threshold=1 \
	--strategy rl:agent=rl-python --strategy oracle "${both[@]}"
once tuned-codexglue run --strategy fixed:layer=14,22,26 --strategy confidence:threshold=0.9 --strategy entropy \
	--strategy classifier --strategy lte --strategy rl --strategy oracle --source "$data" "${both[@]}"
shared=(--artefacts smollm2-135m-shared --strategy fixed:layer=14,22,26 --strategy confidence:threshold=0.9 --strategy rl
	--strategy oracle)
once duplicates run --duplicates keep --strategy fixed:layer=26 --strategy classifier --source "$data" "${both[@]}"
harness report runs/duplicates --without-duplicates # the same without what tuning has read
once shared-head run "${shared[@]}" "${both[@]}"
once shared-head-codexglue run "${shared[@]}" --source "$data" "${both[@]}"
once base run "${base[@]}"
once base-embedded run --strategy full "${base[@]}" "${both[@]}"
once base-codexglue run --strategy full "${base[@]}" --source "$data" "${both[@]}"
once attribution run --attribute --strategy fixed:layer=14,22 --strategy confidence:threshold=0.9 \
	--strategy saturation:threshold=0.95 --strategy classifier --strategy lte --strategy rl --task py150 --limit 40
for input in hidden shortcut; do
	once "kv-input-$input" run --kv-input "$input" --strategy fixed:layer=22 --strategy classifier --strategy rl \
		--strategy oracle --task py150 --task javacorpus --limit 50 --dtype bfloat16
done
policies=(--strategy classifier --strategy lte --strategy rl --strategy confidence:threshold=0.9 --kv propagate,recompute
	--task py150 --task javacorpus --limit 100)
once kv-embedded run "${policies[@]}" --weights-format float32
once kv-codexglue run "${policies[@]}" --weights-format float32 --source "$data"
once kv-embedded-bfloat16 run "${policies[@]}" --weights-format bfloat16 --dtype bfloat16
once kv-codexglue-bfloat16 run "${policies[@]}" --weights-format bfloat16 --dtype bfloat16 --source "$data"
once kv reproduce green-code --figure kv --limit 16
once grid reproduce green-code

trace=traces/smollm2-135m
resume=$([ -d "$trace" ] && echo --resume || true)
harness trace --documents 150 --seed 1 --dtype bfloat16 --source embedded --source "$data" --out "$trace" $resume
harness sweep --replay "$trace" --strategy confidence --strategy margin --strategy entropy --strategy saturation \
	--strategy classifier --strategy lte --points 94 --out runs/sweep # takes seconds
