#!/usr/bin/env bash
# Makes models like the two embedded ones from nothing, in about two hours on two cores: the same stages, without the
# detours that docs/log.md tells of. Run it again after an interruption and it goes on from the last checkpoints.
# Usage: runs/countdown.sh [OUT]   (default runs/out/countdown)
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

stage base base 2 --steps 10000 --stop-after 3500 --lattices 4 --learning-rate 2e-3 --equations 0.25 --lucky 0.25 \
    --idea-drills 0.1 --four-numbers 0.15 --choice-weight 3 --seed 0

# The two models that are compared: equal arguments, equal puzzles, a core each. First mostly the choice of ideas alone,
# in which reading the others is learned within minutes; then whether a value is the target; then everything.
ideas=(--steps 3000 --stop-after 2000 --learning-rate 1.5e-3 --equations 0.1 --lucky 0.1 --idea-drills 0.8
    --four-numbers 0 --choice-weight 1 --seed 1)
verdicts=(--steps 1200 --stop-after 700 --learning-rate 1.2e-3 --equations 1 --seed 2)
whole=(--steps 8000 --learning-rate 1.2e-3 --equations 0.25 --lucky 0.1 --idea-drills 0.2 --four-numbers 0.15
    --choice-weight 3 --seed 3)
all_stages() { # isolated or lattice
    stage "$1-ideas" "$1" 1 --init "$out/base" --lattices 4 "${ideas[@]}"
    stage "$1-verdicts" "$1" 1 --init "$out/$1-ideas" --lattices 4 "${verdicts[@]}"
    stage "$1" "$1" 1 --init "$out/$1-verdicts" --lattices 4 "${whole[@]}"
}
all_stages isolated & isolated=$!
all_stages lattice & lattice=$!
wait "$isolated"
wait "$lattice"
echo "done: $out/isolated and $out/lattice"
