#!/usr/bin/env bash
# What small tenants cost: starts .bin/hundredfold on an empty directory, sends it SPAN of
# TENANTS tenants of 100 series each at 15 s, and prints CPU seconds per million samples,
# memory and open files per tenant, what the process does when nothing comes, and how long
# the next start takes after a kill and after a clean stop. A tenant is counted with four open
# files: see to it that `ulimit -Hn` is above 1,700 + 4.5 times TENANTS, or the last ones are refused.
#
# TENANTS, SPAN, PROTOCOL and SENDERS change the load. HEAP=FILE also writes a profile of
# what is alive on the heap.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

on_empty_directory 'multitenancy: {enabled: true}'
tenants=${TENANTS:-1000}

# ticks: the CPU time of the process, in hundredths of a second.
ticks() { awk '{ print $14 + $15 }' "/proc/$pid/stat"; }

# start WHAT: starts the process and tells what it took until it was ready.
start() {
	local began=$EPOCHREALTIME
	launch
	await_ready "$pid" "$port" /ready "$dir/log" 600
	awk -v what="$1" -v from="$began" -v to="$EPOCHREALTIME" -v ticks="$(ticks)" \
		'BEGIN { printf "%-18s ready after %.1f s, %.1f CPU s\n", what, to - from, ticks / 100 }'
}

# resources: what each tenant takes of the process's own memory and of its files.
resources() {
	awk -v tenants="$tenants" -v files="$(ls "/proc/$pid/fd" | wc -l)" -v maps="$(wc -l <"/proc/$pid/maps")" '
		$1 == "RssAnon:" { printf "per tenant         %d bytes of its own memory, %.2f open files, %.2f memory maps\n", $2 * 1024 / tenants, files / tenants, maps / tenants }
	' "/proc/$pid/status"
}

start "empty"
load=(.bin/hundredfold loadgen --url="$url/api/v1/write" --pid="$pid"
	--series="$((tenants * 100))" --tenants="$tenants" --span="${SPAN:-1h}" --protocol="${PROTOCOL:-1}"
	--samples-per-request=2000 --senders="${SENDERS:-8}")
echo "${load[*]}"
"${load[@]}"
resources
if [ -n "${HEAP:-}" ]; then go tool pprof -proto -output "$HEAP" "$url/debug/pprof/heap?gc=1" >/dev/null; fi

before=$(ticks)
sleep "${IDLE:-30}"
awk -v before="$before" -v after="$(ticks)" -v idle="${IDLE:-30}" 'BEGIN { printf "idle               %.3f of a core\n", (after - before) / 100 / idle }'

kill -9 "$pid"
wait "$pid" 2>/dev/null || true
start "after a kill"
resources
began=$EPOCHREALTIME
end "$pid"
awk -v from="$began" -v to="$EPOCHREALTIME" 'BEGIN { printf "%-18s took %.1f s\n", "a clean stop", to - from }'
start "after a clean stop"
resources
