#!/usr/bin/env bash
# Checks and figures of one GPU: tests marked `gpu`, the demo, and a random LLaVA-1.5-7B in bfloat16.
#
#     benchmarks/gpu_check.sh [OUT]                 figures as OUT/gpu.json; OUT is runs/gpu by default
#     DRY_RUN=1 benchmarks/gpu_check.sh [OUT]       print the commands only
#
# Written for less than 8 minutes on an H100-class card, from a bare clone with torch installed in the environment of PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/gpu}
PYTHON=${PYTHON:-python3}

run() {
    echo "+ $*"
    [ -n "${DRY_RUN:-}" ] || "$@"
}

run mkdir -p "$OUT"
# not the versions of constraints.txt, which would replace the installed torch
run "$PYTHON" -m pip install --quiet --editable ".[demo]" pytest pytest-timeout hypothesis
run "$PYTHON" -m pytest -q -m gpu tests/test_gpu.py
run "$PYTHON" -m benchmarks.locate --geometry llava-1.5-7b --layer 11 --records 1 --together 1 --json "$OUT/locate.json"
run "$PYTHON" -m benchmarks.edit --geometry llava-1.5-7b --layer 11 --batches 1 --json "$OUT/edit.json"
run "$PYTHON" -m benchmarks.memory --geometry llava-1.5-7b --layer 11 --json "$OUT/memory.json"
run "$PYTHON" -m lightning_neuralgate.cli demo --out "$OUT/demo"
run "$PYTHON" -m benchmarks.gpu_summary "$OUT"
