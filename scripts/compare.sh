#!/usr/bin/env bash
# What the same remote write costs this build and other receivers on the same machine:
# starts .bin/hundredfold on an empty directory, and runs `hundredfold compare` with it and
# with TARGETS, which are NAME,URL,PID[,PID...] with spaces between. Without TARGETS, or
# with PROMETHEUS=1, it also starts .bin/prometheus.
#
# SERIES, SPAN, END, ROUNDS, SETTLE, PROTOCOL and SENDERS change the load. END is the end of the
# last round, the last odd hour if it is not given, so that memory does not depend on the time
# of the run. REVERSE=1 begins with the last receiver.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

if [ "$(uname)" != Linux ]; then
	echo "compare: CPU time and memory of the receivers are read from /proc, which only Linux has" >&2
	exit 2
fi

dir=$(mktemp -d)
pids=()
stop() {
	local pid
	for pid in "${pids[@]}"; do end "$pid"; done
	rm -rf "$dir"
}
trap stop EXIT

targets=()

# add NAME PORT READY COMMAND...: starts a receiver of ours.
add() {
	local name=$1 port=$2 ready=$3
	shift 3
	"$@" >"$dir/$name.log" 2>&1 &
	pids+=($!)
	await_ready $! "$port" "$ready" "$dir/$name.log" 30
	targets+=("--target=$name,http://127.0.0.1:$port/api/v1/write,$!")
}

# The process's own metrics are not the load that is measured.
printf 'self_monitoring: {enabled: false}\n' >"$dir/hundredfold.yml"
port=$(free_port)
add hundredfold "$port" /ready .bin/hundredfold --config.file="$dir/hundredfold.yml" \
	--data.dir="$dir/hundredfold" --http.listen-address="127.0.0.1:$port"

for target in ${TARGETS:-}; do targets+=("--target=$target"); done

if [ -z "${TARGETS:-}" ] || [ "${PROMETHEUS:-0}" = 1 ]; then
	: >"$dir/prometheus.yml"
	port=$(free_port)
	add prometheus "$port" /-/ready .bin/prometheus --config.file="$dir/prometheus.yml" \
		--storage.tsdb.path="$dir/prometheus" --web.listen-address="127.0.0.1:$port" \
		--web.enable-remote-write-receiver
fi

compare=(.bin/hundredfold compare "${targets[@]}" --series="${SERIES:-100000}" --span="${SPAN:-30m}" --end="${END:-$(fixed_end)}"
	--rounds="${ROUNDS:-3}" --settle="${SETTLE:-30s}" --protocol="${PROTOCOL:-1}" --senders="${SENDERS:-8}")
if [ "${REVERSE:-0}" = 1 ]; then compare+=(--reverse); fi
echo "${compare[*]}"
"${compare[@]}"
