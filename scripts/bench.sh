#!/usr/bin/env bash
# What the whole process costs: starts .bin/hundredfold on an empty directory, sends
# it an hour of 100,000 series as fast as it accepts, and prints CPU seconds per
# million samples and bytes of memory per active series.
#
# SERIES, SPAN, END, PROTOCOL and SENDERS change the load. END is the end of SPAN, as RFC 3339
# or Unix seconds: the last odd hour if it is not given, so that memory does not depend on the
# time of the run. PROFILE=FILE also writes a CPU profile of the process under load.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

on_empty_directory
launch
await_ready "$pid" "$port" /ready "$dir/log" 10

load=(.bin/hundredfold loadgen --url="$url/api/v1/write" --pid="$pid"
	--series="${SERIES:-100000}" --span="${SPAN:-1h}" --end="${END:-$(fixed_end)}" --protocol="${PROTOCOL:-1}"
	--samples-per-request=2000 --senders="${SENDERS:-8}")
echo "${load[*]}"

if [ -n "${PROFILE:-}" ]; then
	"${load[@]}" &
	loadgen=$!
	go tool pprof -proto -seconds 15 -output "$PROFILE" "$url/debug/pprof/profile" >/dev/null
	wait "$loadgen"
else
	"${load[@]}"
fi
