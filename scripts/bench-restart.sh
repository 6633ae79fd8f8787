#!/usr/bin/env bash
# What a restart costs: fills an empty directory with SPAN of SERIES series at 15 s as
# fast as .bin/hundredfold accepts them, kills the process, and prints how long the next
# one takes until it is ready and the most memory it needs for that; then the same after
# a clean stop. 1,000,000 series over 2h are 480 million samples and some 8 GB in $TMPDIR.
#
# SERIES, SPAN, PROTOCOL and SENDERS change the load. PROFILE=FILE also writes a CPU
# profile of the start after the kill.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

on_empty_directory

# memory FIELD: what the process has in RAM, in MB. RssAnon is what it needs; VmHWM is the
# most that there was together with pages of mapped files, which the system may drop.
memory() { awk -v field="$1:" '$1 == field { printf "%d", $2 * 1.024 / 1e3 }' "/proc/$pid/status"; }

# watch FILE: keeps the highest RssAnon of the process in FILE until it is killed.
watch() {
	local highest=0 now
	while sleep 0.05; do
		now=$(memory RssAnon 2>/dev/null) || return 0
		if [ "${now:-0}" -gt "$highest" ]; then
			highest=$now
			echo "$highest" >"$1"
		fi
	done
}

# start WHAT: starts the process and tells what it took until it was ready.
start() {
	local began=$EPOCHREALTIME ended watcher
	launch
	memory RssAnon >"$dir/highest"
	watch "$dir/highest" &
	watcher=$!
	if [ "$1" = "$profiled" ]; then profile & profiler=$!; fi
	await_ready "$pid" "$port" /ready "$dir/log" 600
	ended=$EPOCHREALTIME
	end "$watcher"
	awk -v what="$1" -v from="$began" -v to="$ended" -v own="$(cat "$dir/highest")" -v all="$(memory VmHWM)" \
		-v running_own="$running_own" -v running_all="$running_all" '
		NR == 1 { cpu = ($14 + $15) / 100 }
		END {
			printf "%-18s ready after %.1f s, %.1f CPU s; at most %d MB of its own, %d MB with mapped files", what, to - from, cpu, own, all
			if (running_own) printf ": %.2f and %.2f times running", own / running_own, all / running_all
			print ""
		}' "/proc/$pid/stat"
}

# The profile lasts as long as the start: pprof's handler answers before /ready does.
profile() {
	until (is_ready "$port" /-/healthy) 2>/dev/null; do sleep 0.1; done
	go tool pprof -proto -seconds "${PROFILE_SECONDS:-30}" -output "$PROFILE" "$url/debug/pprof/profile" >/dev/null
}

profiled=${PROFILE:+"after a kill"}
running_own=0 running_all=0
start "empty"
load=(.bin/hundredfold loadgen --url="$url/api/v1/write" --pid="$pid"
	--series="${SERIES:-100000}" --span="${SPAN:-2h}" --protocol="${PROTOCOL:-1}"
	--samples-per-request=2000 --senders="${SENDERS:-8}")
echo "${load[*]}"
"${load[@]}"
running_own=$(memory RssAnon) running_all=$(memory VmHWM)
echo "running            $running_own MB of its own, $running_all MB with mapped files; $(du -sm "$dir/data" | cut -f 1) MB on disk"

kill -9 "$pid"
wait "$pid" 2>/dev/null || true
start "after a kill"
if [ -n "$profiler" ]; then wait "$profiler"; profiler=; fi

began=$EPOCHREALTIME
end "$pid"
awk -v from="$began" -v to="$EPOCHREALTIME" 'BEGIN { printf "%-18s took %.1f s\n", "a clean stop", to - from }'
start "after a clean stop"
