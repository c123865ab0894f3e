#!/usr/bin/env bash
# What docs show of the embedded models, made anew: measured, drawn, photographed, and put into the tables.
#
#   runs/pictures.sh                       figures pages tables: from docs/results, about three minutes on two cores
#   runs/pictures.sh observe recording     first of all, for other models: ten minutes; recording wants a quiet machine
#
# docs/results/training/VARIANT-SEED/log.jsonl are logs of `lace train` (runs/tiny.sh: $OUT/SEED/VARIANT-sft/log.jsonl), the other
# files reports of lace eval, lace bench and lace observe; all of them that make curves are drawn.
set -euo pipefail
cd "$(dirname "$0")/.."
make --quiet .venv/.installed
images=docs/images drawn=$(mktemp -d)
trap 'rm -rf "$drawn"' EXIT

observe() { .venv/bin/lace observe --n 40 --silence --json docs/results/viewing/exchange.json; }
recording() { .venv/bin/python benchmarks/recording.py --json docs/results/viewing/recording.json; }
figures() {
    .venv/bin/lace plot docs/results/training/* --out "$drawn"
    for report in docs/results/*.json docs/results/evidence/{width,width_sums,budget}.json docs/results/speed/growth*.json \
        docs/results/viewing/exchange.json; do
        [ -e "$report" ] || continue
        .venv/bin/lace plot "$report" --out "$drawn" || echo "no figure of $report, see above"
    done
    cp "$drawn"/*.png "$images" # the .svg files are as good, and larger
}
pages() { .venv/bin/python benchmarks/pictures.py "$images"; }
tables() { .venv/bin/python docs/make_tables.py; }

[ $# -gt 0 ] || set -- figures pages tables
for part in "$@"; do
    case $part in
    observe | recording | figures | pages | tables) "$part" ;;
    *) echo "unknown part $part; known are observe, recording, figures, pages, tables" >&2; exit 2 ;;
    esac
done
