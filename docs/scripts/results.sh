#!/usr/bin/env bash
# Every run behind the tables of the documentation, each once: what is finished is left alone, what was stopped goes on.
#
#   docs/scripts/results.sh DATA_FOLDER              four and a half hours on two cores; nothing else may run beside it
#   docs/scripts/results.sh DATA_FOLDER --dry-run    what the studies will take, from a few requests of each kind
#   python docs/scripts/write_tables.py studies            then writes the tables
#
# DATA_FOLDER holds CodeXGLUE's rows, which studies name ./data; `harness` must be on the PATH (. .venv/bin/activate).
set -euo pipefail
data=$(cd "${1:?give the folder of CodeXGLUE rows}" && pwd)
cd "$(dirname "$0")/../.."
[ -e data ] || ln -s "$data" data
[ data -ef "$data" ] || { echo "./data is another folder than $data: rename it" >&2 && exit 2; }
failed=0

points() { # COMMAND…: code 1 says that something in it failed, others that all of it ends here
	"$@" || { code=$? && [ $code = 1 ] || exit $code; failed=1; }
}

for study in docs/scripts/results/*.toml; do
	points harness study "$study" "${@:2}"
done
points harness study green-code --only model=smollm2-135m --limit 8 "${@:2}"
[ $# = 1 ] || exit $failed

trace=traces/smollm2-135m
resume=$([ -d "$trace" ] && echo --resume || true)
harness trace --documents 150 --seed 1 --source embedded --source data --out "$trace" $resume
harness sweep --replay "$trace" --strategy confidence --strategy margin --strategy entropy --strategy saturation \
	--strategy classifier --strategy lte --points 94 --out studies/scores # takes seconds

by_token() { # NAME ARTEFACTS OPTION…: where exits of one model pay, on documents that tuning has not read; five minutes
	trace=traces/by-token/$1
	resume=$([ -d "$trace" ] && echo --resume || true)
	harness trace --split test --documents 20 --length 384 --source embedded --source data --artefacts "${@:2}" \
		--out "$trace" $resume
	harness sweep --replay "$trace" --strategy confidence:threshold=0.9 --document-split all --artefacts "$2" \
		--out "studies/by-token/$1"
}
by_token tuned smollm2-135m
by_token shared smollm2-135m-shared
by_token base smollm2-135m --weights pretrained --exit-head shared
trace=traces/by-token/generated
resume=$([ -d "$trace" ] && echo --resume || true)
harness trace --new-tokens 30 --documents 20 --seed 5 --source embedded --source data --out "$trace" $resume
harness sweep --replay "$trace" --strategy classifier:threshold=0.95 --decode lossless --document-split all \
	--out studies/by-token/generated
exit $failed
