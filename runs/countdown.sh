#!/usr/bin/env bash
# Makes the two embedded models from nothing: about 100 minutes on two cores. Run it again after an interruption and it
# goes on from the last checkpoint. Usage: runs/countdown.sh [OUT]   (default runs/out/countdown)
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet .venv/.installed
out=${1:-runs/out/countdown}
mkdir -p "$out"
stage() { # name, threads, arguments: trains a stage unless it is finished
    [ -f "$out/$1/config.json" ] && { echo "$1: done already"; return; }
    echo "$1: training, log in $out/$1.log"
    OMP_NUM_THREADS=$2 .venv/bin/python -m lace.train.countdown "$1" --out "$out/$1" "${@:3}" >>"$out/$1.log" 2>&1
}
