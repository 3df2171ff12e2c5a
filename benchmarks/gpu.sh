#!/usr/bin/env bash
# What a GPU does: that it computes what the CPU does, and what everything costs in plain passes.
#
#   benchmarks/gpu.sh [FOLDER]              a GPU, some minutes; results.json and table.md in FOLDER (gpu-results)
#   benchmarks/gpu.sh [FOLDER] --dry-run    the same on the CPU, small, to try the script
#
# Needs torch 2.11 or newer and the packages of pyproject.toml; no network, no data.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=gpu-results dry_run=
for argument; do
    if [[ $argument == --dry-run ]]; then dry_run=$argument; else folder=$argument; fi
done
mkdir -p "$folder"
python=${PYTHON:-python}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
if [[ $dry_run ]]; then export WORSTCASE_GPU=cpu; fi
tests=passed
"$python" -m pytest -n0 -q -m gpu tests/test_gpu.py -p no:cacheprovider > "$folder/tests.txt" 2>&1 || tests=failed
tail -n 3 "$folder/tests.txt"
"$python" -m benchmarks.gpu "$folder" --tests "$tests" $dry_run
[[ $tests == passed ]]
