#!/usr/bin/env bash
# Makes the small models from nothing: the shipped pair, or a control. Run it again after an interruption and it goes on
# where it stopped. Stages 1 and 2 of one seed are shared by all its variants.
#
#   runs/tiny.sh [VARIANT ...]                      variants: see below; default: isolated lace
#   SEED=1 OUT=runs/out/tiny runs/tiny.sh lace isolated
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet .venv/.installed
SEED=${SEED:-0} OUT=${OUT:-runs/out/tiny}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # two runs of a thread each are faster than one of two

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
    *) echo "unknown variant $1" >&2; return 1 ;;
    esac
}
stage() { # command, config, folder, overrides: one stage, unless it is finished
    local folder=$OUT/$SEED/$3
    [ -d "$folder/model" ] && return
    echo "$3: training; progress in $folder/log.jsonl"
    .venv/bin/lace train "$1" "configs/tiny/$2.toml" --run.out="$folder" --run.seed="$SEED" "${@:4}"
}
mistakes() { # model's folder, table
    [ -f "$OUT/$SEED/$2" ] || .venv/bin/python -m lace.train.mistakes "$OUT/$SEED/$1/model" "$OUT/$SEED/$2"
}
data_seed() { echo "--data.seed=$((10 * SEED + $1))"; } # another stream in every stage

train() { # variant, until: runs the stages of a variant up to one of them
    local own init=$OUT/$SEED
    own=$(settings "$1")
    # Only the first grafted stage sets the lattice's shape; later ones find it in the model.
    local later
    later=$(tr ' ' '\n' <<<"$own" | grep -v '^--lattice\.' || true)
    stage sft ideas "$1-ideas" --model.init="$init/base/model" $(data_seed 1) $own
    [ "${2:-}" = ideas ] && return
    mistakes isolated-ideas mistakes-ideas.safetensors
    stage sft chains "$1-chains" --model.init="$init/$1-ideas/model" $(data_seed 2) $later \
        --data.mistakes="$init/mistakes-ideas.safetensors"
    [ "${2:-}" = chains ] && return
    mistakes isolated-chains mistakes-chains.safetensors
    stage sft whole "$1-whole" --model.init="$init/$1-chains/model" $(data_seed 3) $later \
        --data.mistakes="$init/mistakes-chains.safetensors"
    case $1 in
    lace) stage grpo grpo lace-grpo --model.init="$init/lace-whole/model" ;;
    isolated) stage grpo grpo isolated-grpo --model.init="$init/isolated-whole/model" --grpo.strategy=independent ;;
    esac
}

trap 'for job in $(jobs -p); do pkill -P "$job" || true; done' EXIT # nothing goes on when the script ends

OMP_NUM_THREADS=2 stage sft base base $(data_seed 0)
train isolated chains & # the tables of mistakes are of this model
train "${variants[-1]}" ideas &
wait -n && wait -n
for variant in "${variants[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
    train "$variant" &
done
while [ "$(jobs -rp | wc -l)" -ge 1 ]; do wait -n; done
echo "done: $OUT/$SEED"
