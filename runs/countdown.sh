#!/usr/bin/env bash
# Makes the two embedded models from nothing: about two hours on two cores. Run it again after an interruption and it
# goes on from the last checkpoints. Usage: runs/countdown.sh [OUT]   (default runs/out/countdown)
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet .venv/.installed
out=${1:-runs/out/countdown}
mkdir -p "$out"

stage() { # folder, stage, threads of torch, arguments: trains one stage, unless it is finished
    local folder=$out/$1
    [ -f "$folder/.finished" ] && { echo "$1: done already"; return; }
    echo "$1: training; progress in $folder/checkpoints/log.jsonl"
    OMP_NUM_THREADS=$3 .venv/bin/python -m lace.train.countdown "$2" --out "$folder" "${@:4}" >>"$folder.log" 2>&1
    touch "$folder/.finished"
}
# Both trainings end with the script, so that running it again finds nobody else writing.
trap 'for job in $(jobs -p); do pkill -P "$job" || true; done' EXIT

arguments=(--init "$out/isolated1" --steps 3600 --lattices 4 --learning-rate 1e-3 --drills 0.15 --four-numbers 0.15
    --choice-weight 2 --seed 1)
stage base base 2 --steps 6500 --stop-after 5000 --lattices 4 --learning-rate 2e-3 --drills 0.5 --seed 0
stage isolated1 isolated 2 --init "$out/base" --steps 7500 --stop-after 6500 --lattices 4 --learning-rate 1.5e-3 \
    --drills 0.25 --seed 0
# The two models that are compared: equal arguments, equal puzzles, a core each.
stage isolated2 isolated 1 "${arguments[@]}" & isolated=$!
stage lattice2 lattice 1 "${arguments[@]}" & lattice=$!
wait "$isolated"
wait "$lattice"
echo "done: $out/isolated2 and $out/lattice2"
