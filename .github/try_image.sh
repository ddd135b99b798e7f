#!/usr/bin/env bash
# Builds the container and runs it as a user without a name would, with the folders that Dockerfile names.
set -euo pipefail
cd "$(dirname "$0")/.."
docker build --tag early-exit-harness .
results=$(mktemp -d)
in_it=(docker run --rm --user "$(id -u)" --volume "$results:/results" --volume early-exit-cache:/cache early-exit-harness)
"${in_it[@]}" run --limit 2 --out run
"${in_it[@]}" report run --out report
test -s "$results/report/index.html"
