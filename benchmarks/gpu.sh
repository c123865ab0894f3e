#!/usr/bin/env bash
# What needs a GPU, from the repository's root: the tests marked so, then the times.   benchmarks/gpu.sh FOLDER [SECONDS]
# Every part has its own limit, and one that fails leaves the others alone.
set -u
OUT=$1
END=$((SECONDS + ${2:-150}))
PYTHON=${PYTHON:-python3}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

part() { # at most so many seconds: command
  local most=$1 left=$((END - SECONDS))
  shift
  if [ "$left" -lt 12 ]; then echo "no time left for: $*"; return; fi
  timeout -k 2 $((most < left ? most : left)) "$@"
  echo "== $SECONDS s, status $?: $*"
}

part 60 "$PYTHON" -m pytest -q -m gpu tests/gpu -p no:cacheprovider --tb=short -W ignore
part 60 "$PYTHON" benchmarks/gpu.py qwen3-0.6b "$OUT/qwen3-0.6b.json" steps generate
part 35 "$PYTHON" benchmarks/gpu.py smollm2-135m "$OUT/smollm2-135m.json" steps
part 30 "$PYTHON" benchmarks/gpu.py puzzles "$OUT/puzzles.json" steps
part 60 "$PYTHON" benchmarks/gpu.py qwen3-0.6b "$OUT/qwen3-0.6b-compiled.json" compiled
