#!/usr/bin/env bash
# From nothing to the table: one small base model, then every variant with every seed, then the test puzzles. Two runs of
# a thread each go side by side. Run it again after an interruption and it goes on where it stopped.
#
#   runs/tiny.sh [VARIANT ...]                      variants: see below; default: isolated lace
#   SEEDS="0 1 2" OUT=runs/out/tiny runs/tiny.sh
#
# Models: $OUT/SEED/VARIANT-routes/model and -grpo/model; tables: $OUT/countdown.md, $OUT/chain-sum.md.
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet .venv/.installed
SEEDS=${SEEDS:-0} OUT=${OUT:-runs/out/tiny} N_PUZZLES=${N_PUZZLES:-2000}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # two runs of a thread each are faster than one of two
fast=runs/mkl_on_amd.sh

variants=("$@")
[ ${#variants[@]} -gt 0 ] || variants=(isolated lace)

settings() { # the settings that make a variant, in all its stages
    case $1 in
    lace) ;;                                                                    # threads that read each other
    isolated) echo --data.coordinated=false --train.lattice=off ;;              # blind traces, lattice off
    isolated-on-coordinated) echo --train.lattice=off ;;                        # the very traces of lace, lattice off
    p-match) echo --lattice.kind=mlp ;;                                         # as many parameters, no exchange
    bridge) echo --lattice.visibility=same_step --lattice.thread_dims=0 --lattice.time_dims=32 ;; # arXiv 2510.01143
    causal) echo --lattice.visibility=causal --data.visibility=causal ;;        # sees a step more
    no-thread-encoding) echo --lattice.thread_dims=0 --lattice.time_dims=32 ;;
    no-shuffling) echo --data.shuffle_threads=false ;;
    with-cpt) ;;                                                                # the lattice learns alone at first
    *) echo "unknown variant $1" >&2; return 1 ;;
    esac
}
entries() { # how a variant is asked on test puzzles, at the temperatures that lace eval has for the tasks
    local variant=$1 seed=$2 stage strategy=lace
    [[ $variant == isolated* ]] && strategy=independent
    for stage in routes grpo; do
        [ -d "$OUT/$seed/$variant-$stage/model" ] || continue
        echo "--entry=$variant-$stage/$seed=$OUT/$seed/$variant-$stage/model@$strategy"
    done
}
stage() { # folder, command, config, overrides: one stage, unless it is finished
    local folder=$OUT/$1
    [ -d "$folder/model" ] && return
    echo "$1: training; progress in $folder/log.jsonl"
    $fast .venv/bin/lace train "$2" "configs/tiny/$3.toml" --run.out="$folder" "${@:4}"
}
train() { # variant, seed
    local own later init=$OUT/adding/model at=$OUT/$2/$1
    own=$(settings "$1")
    later=$(tr ' ' '\n' <<<"$own" | grep -v '^--lattice\.' || true) # later stages find the lattice in the model
    drawn() { echo "--run.seed=$2 --data.seed=$((10 * $2 + $1)) --data.mistakes=$OUT/mistakes.safetensors"; } # other puzzles in every stage
    if [ "$1" = with-cpt ]; then
        stage "$2/$1-cpt" cpt ideas $(drawn 0 "$2") --model.init="$init" --train.stop_after=400
        init=$at-cpt/model
    fi
    stage "$2/$1-ideas" sft ideas $(drawn 1 "$2") --model.init="$init" $own
    stage "$2/$1-chains" sft chains $(drawn 2 "$2") --model.init="$at-ideas/model" $later
    stage "$2/$1-sft" sft sft $(drawn 3 "$2") --model.init="$at-chains/model" $later
    stage "$2/$1-routes" sft routes $(drawn 5 "$2") --model.init="$at-sft/model" $later
    case $1 in
    lace) stage "$2/lace-grpo" grpo grpo --run.seed="$2" --model.init="$at-routes/model" ;;
    isolated) stage "$2/isolated-grpo" grpo grpo --run.seed="$2" --model.init="$at-routes/model" --grpo.strategy=independent ;;
    esac
}
two_at_a_time() { while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done; }
all_done() { while [ "$(jobs -rp | wc -l)" -ge 1 ]; do wait -n; done; }

trap 'for job in $(jobs -p); do pkill -P "$job" || true; done' EXIT # nothing goes on when the script ends

OMP_NUM_THREADS=2 stage base sft base --data.seed=0
OMP_NUM_THREADS=2 stage adding sft adding --model.init="$OUT/base/model"
[ -f "$OUT/mistakes.safetensors" ] || $fast .venv/bin/python -m lace.train.mistakes "$OUT/adding/model" "$OUT/mistakes.safetensors"
for seed in $SEEDS; do
    for variant in "${variants[@]}"; do
        two_at_a_time
        train "$variant" "$seed" &
    done
done
all_done
for task in countdown chain-sum; do
    asked=()
    [ $task = countdown ] && asked=(--max-tokens 80) # from validation puzzles (docs/log.md)
    for seed in $SEEDS; do
        for variant in "${variants[@]}"; do asked+=($(entries "$variant" "$seed")); done
    done
    [ -f "$OUT/$task.json" ] || $fast .venv/bin/lace eval $task "${asked[@]}" --n "$N_PUZZLES" --json "$OUT/$task.json" --markdown "$OUT/$task.md" &
done
all_done
cat "$OUT/countdown.md" "$OUT/chain-sum.md"
