# What the measuring scripts share. They run in the root of the repository.

# A port that nobody listens on: connecting to it fails.
free_port() {
	local port=$((20000 + RANDOM % 10000))
	while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done
	echo "$port"
}

# is_ready PORT PATH: the answer there is 200.
is_ready() {
	exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
	printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3
	head -n 1 <&3 | grep -q ' 200 '
}

# await_ready PID PORT PATH LOG SECONDS: waits until the process is ready. If it ends, or
# takes longer, that ends the script with the log.
await_ready() {
	local i
	for ((i = 0; ; i++)); do
		if (is_ready "$2" "$3") 2>/dev/null; then return; fi
		if ! kill -0 "$1" 2>/dev/null || ((i == $5 * 10)); then
			echo "process $1 did not become ready; its log:" >&2
			cat "$4" >&2
			exit 1
		fi
		sleep 0.1
	done
}

# on_empty_directory LINE...: what a script begins with that measures one process: sets dir, an
# empty directory which goes when the script ends, with LINEs in its config.yml, and port and url
# for launch.
on_empty_directory() {
	dir=$(mktemp -d)
	pid= profiler=
	trap clean_up EXIT
	port=$(free_port)
	url=http://127.0.0.1:$port
	# The process's own metrics are not the load that is measured.
	printf '%s\n' 'self_monitoring: {enabled: false}' "$@" >"$dir/config.yml"
}

# launch: starts the process, whose id is pid then. It appends to $dir/log.
launch() {
	.bin/hundredfold --config.file="$dir/config.yml" --data.dir="$dir/data" \
		--http.listen-address="127.0.0.1:$port" 2>>"$dir/log" &
	pid=$!
}

# clean_up: ends what on_empty_directory and launch began, and profiler, if that was set.
clean_up() {
	if [ -n "$profiler" ]; then kill "$profiler" 2>/dev/null || true; fi
	if [ -n "$pid" ]; then end "$pid"; fi
	rm -rf "$dir"
}

# end PID: stops the process and waits for it.
end() {
	kill "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

# fixed_end: the last odd hour, as Unix seconds. The TSDB ends chunks so that they divide two
# hours evenly, so what a series takes in memory depends on where in two hours a stream lies
# (ADR 022): with the same end two runs can be compared, and an hour begins at an even one.
fixed_end() { echo $((($(date +%s) - 3600) / 7200 * 7200 + 3600)); }
