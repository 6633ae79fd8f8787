#!/usr/bin/env bash
# What queries of a year cost: writes a year of 1,000 series at 60 s as blocks, once,
# serves them from a real S3-compatible server that a proxy makes as slow as a distant one (20 ms
# for each request, 200 MB/s in total), starts .bin/hundredfold on it, and prints
# what the queries of dashboards take: cold, with the pages on local disk, and from
# the cache of results, each beside its goal.
#
# HISTORY is the directory of the blocks, 1.1 GB, which is kept for the next run.
# --queriers=3 measures a cluster whose queriers share the blocks, and prints what the others take.
# PROMETHEUS=1 also measures .bin/prometheus on the same blocks from local disk.
# Arguments are flags of the program: see .bin/history bench --help.
set -euo pipefail
cd "$(dirname "$0")/.."

history=${HISTORY:-.bin/history-blocks}
exec .bin/history bench --dir="$history/year" --work="$history/work" ${PROMETHEUS:+--prometheus} "$@"
