#!/usr/bin/env bash
# From questions to a model: a programmatic teacher, the lattices of `lace data`, a small model that learns from them,
# and its answers to questions it has not seen. Run it again after an interruption and it goes on.
#
#   runs/student.sh                                 results: runs/out/student/answers.json
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet .venv/.installed
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
OUT=runs/out/student

exec 3< <(PYTHONPATH=tests exec .venv/bin/python -m teachers --port 8001)
trap "kill $!" EXIT
read -r _ <&3 # its address, once it listens

if [ ! -d $OUT/base ]; then # the tokenizer comes from a few lattices in bytes
    .venv/bin/python benchmarks/student.py bytes $OUT/bytes
    .venv/bin/lace data run configs/data/student-pilot.toml
    .venv/bin/python benchmarks/student.py base $OUT/pilot $OUT/base.unfinished
    mv $OUT/base.unfinished $OUT/base
fi
.venv/bin/lace data run configs/data/student.toml
runs/mkl_on_amd.sh .venv/bin/lace train sft configs/student/sft.toml
runs/mkl_on_amd.sh .venv/bin/lace train sft configs/student/sft.toml --train.lattice=off --run.out=$OUT/isolated # its control
runs/mkl_on_amd.sh .venv/bin/python benchmarks/student.py ask $OUT/data $OUT/sft/model --isolated $OUT/isolated/model --json $OUT/answers.json
