#!/usr/bin/env bash
# Runs a command with PyTorch's matrix products at full speed on an AMD processor (docs/speed.md): the MKL inside PyTorch asks one
# function whether the processor is Intel's, and where it is not takes older kernels. Here the answer is yes. Elsewhere, and
# without a C compiler, the command runs as it is.
#
#   runs/mkl_on_amd.sh .venv/bin/lace train sft configs/tiny/base.toml
set -euo pipefail
library=$(dirname "$(realpath "$0")")/out/mkl_on_amd.so
if grep -q AuthenticAMD /proc/cpuinfo 2>/dev/null && grep -q avx2 /proc/cpuinfo && command -v cc >/dev/null; then
    if [ ! -e "$library" ]; then
        mkdir -p "$(dirname "$library")"
        echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' | cc -shared -fPIC -x c - -o "$library.$$"
        mv "$library.$$" "$library" # whole at once, for runs side by side
    fi
    export LD_PRELOAD=$library${LD_PRELOAD:+:$LD_PRELOAD}
fi
exec "$@"
