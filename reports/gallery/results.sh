#!/usr/bin/env bash
# Every run behind the tables of the documentation, each once: what is finished is left alone, what was stopped goes on.
#
#   reports/gallery/results.sh DATA_FOLDER              four and a half hours on two cores; nothing else may run beside it
#   reports/gallery/results.sh DATA_FOLDER --dry-run    what the studies will take, from a few requests of each kind
#   python reports/gallery/tables.py studies            then writes the tables
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

for study in reports/gallery/results/*.toml; do
	points harness study "$study" "${@:2}"
done
[ $# = 1 ] || exit $failed

reproduced() { # FILE FIGURE OPTION…: FILE lies there when it is finished
	local out=studies/green-code-$2
	if [ -f "$out/$1" ]; then
		echo "$out is there"
	elif [ -d "$out" ]; then
		points harness reproduce --resume "$out"
	else
		points harness reproduce green-code --figure "${@:2}" --out "$out"
	fi
}

reproduced summary.json kv --limit 16
reproduced grid.json grid

trace=traces/smollm2-135m
resume=$([ -d "$trace" ] && echo --resume || true)
harness trace --documents 150 --seed 1 --source embedded --source data --out "$trace" $resume
harness sweep --replay "$trace" --strategy confidence --strategy margin --strategy entropy --strategy saturation \
	--strategy classifier --strategy lte --points 94 --out studies/scores # takes seconds
exit $failed
