#!/usr/bin/env bash
# The pictures of README and documentation, made anew from run directories: front.png of the first, leaderboard.png of all;
# exits-pay.png and waiting.png of what docs/results/measure made; endpoint.png of a server that it starts, which
# `python docs/scripts/endpoint.py` makes alone.
#
#   docs/scripts/pictures.sh RUN…        `harness` and `chromium` must be on the PATH; a minute
set -euo pipefail
pictures=$(cd "$(dirname "$0")/../gallery" && pwd)
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

harness report "${1:?name run directories}" --out "$made/report"
cp "$made"/report/figures/*-front-speedup.png "$pictures/front.png"
harness report studies/by-token/{base,shared,tuned} --out "$made/by-token"
cp "$made"/by-token/figures/exits-pay-*.png "$pictures/exits-pay.png"
harness report studies/sessions/runs/py150.embedded-* --out "$made/sessions"
cp "$made"/sessions/figures/*-waiting.png "$pictures/waiting.png"
harness leaderboard "$@" --out "$made/site"
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1330 --virtual-time-budget=4000 \
	--screenshot="$pictures/leaderboard.png" "file://$made/site/index.html"
python "$(dirname "$0")/endpoint.py"
