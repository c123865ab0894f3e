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
    [ -f "$folder/config.json" ] && { echo "$1: done already"; return; }
    echo "$1: training; progress in $folder/checkpoints/log.jsonl"
    OMP_NUM_THREADS=$3 .venv/bin/python -m lace.train.countdown "$2" --out "$folder" "${@:4}" >>"$folder.log" 2>&1
}
both() { # the two stages that are compared, side by side on a core each: round, arguments
    local round=$1 isolated lattice from_isolated=base from_lattice=base
    [ "$round" = 1 ] || { from_isolated=isolated1 from_lattice=lattice1; }
    stage "isolated$round" isolated 1 --init "$out/$from_isolated" "${@:2}" & isolated=$!
    stage "lattice$round" lattice 1 --init "$out/$from_lattice" "${@:2}" & lattice=$!
    wait "$isolated" && wait "$lattice"
}

stage base base 2 --steps 6500 --stop-after 5000 --lattices 4 --learning-rate 2e-3 --drills 0.5 --seed 0
both 1 --steps 7500 --lattices 4 --learning-rate 1.5e-3 --drills 0.25 --seed 0
both 2 --steps 2000 --lattices 4 --learning-rate 5e-4 --drills 0.25 --seed 1
echo "done: $out/isolated2 and $out/lattice2"
