#!/usr/bin/env bash
# What the whole process costs: starts .bin/hundredfold on an empty directory, sends
# it an hour of 100,000 series as fast as it accepts, and prints CPU seconds per
# million samples and bytes of memory per active series.
#
# SERIES, SPAN, PROTOCOL and SENDERS change the load. PROFILE=FILE also writes a
# CPU profile of the process under load.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$(mktemp -d)
pid=
stop() {
	if [ -n "$pid" ]; then
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	fi
	rm -rf "$dir"
}
trap stop EXIT

# A port that nobody listens on: connecting to it fails.
port=$((20000 + RANDOM % 10000))
while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done
url=http://127.0.0.1:$port

# The process's own metrics are not the load that is measured.
printf 'self_monitoring: {enabled: false}\n' >"$dir/config.yml"
.bin/hundredfold --config.file="$dir/config.yml" --data.dir="$dir/data" \
	--http.listen-address="127.0.0.1:$port" 2>"$dir/log" &
pid=$!

ready() {
	exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
	printf 'GET /ready HTTP/1.0\r\n\r\n' >&3
	head -n 1 <&3 | grep -q ' 200 '
}
for ((i = 0; ; i++)); do
	if (ready) 2>/dev/null; then break; fi
	if ! kill -0 "$pid" 2>/dev/null || ((i == 100)); then
		echo "bench: hundredfold did not become ready; its log:" >&2
		cat "$dir/log" >&2
		exit 1
	fi
	sleep 0.1
done

load=(.bin/hundredfold loadgen --url="$url/api/v1/write" --pid="$pid"
	--series="${SERIES:-100000}" --span="${SPAN:-1h}" --protocol="${PROTOCOL:-1}"
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
