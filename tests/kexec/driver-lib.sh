# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# For the drivers of this folder, which run on the host while remote.scenario runs in the VM: commands
# in the VM, a kvstore in the VM, the oracle outside of it. Wants ORACLE in the environment, and what
# `scripts/vm run` gives to drivers.
set -euo pipefail

: "${ORACLE:?}" "${VM:?}" "${VM_SHARE:?}" "${VM_PORT_6379:?}"

boot=0
commands=0
starts=0
load_pid=
work=$(mktemp -d)
log=$work/oracle.log

clean_up() {
	local status=$?
	[[ -z $load_pid ]] || kill -9 "$load_pid" 2>/dev/null || true
	((status == 0)) || show_server_logs
	rm -rf "$work"
}
trap clean_up EXIT

show_server_logs() {
	local file
	for file in "$VM_SHARE"/kvstore-*.log; do
		[[ ! -f $file ]] || sed "s|^|${file##*/}: |" "$file" >&2
	done
}

say() { printf '%s\n' "$*" >&2; }
fail() {
	printf 'driver: FAILED: %s\n' "$*" >&2
	exit 1
}

# expect WHAT ACTUAL EXPECTED: compare.
expect() { [[ $2 == "$3" ]] || fail "$1 is '$2', not '$3'"; }

# --- the VM -------------------------------------------------------------------------------------------

wait_boot() { "$VM" wait-mark "boot-$boot" --timeout 180 >/dev/null; }

# guest COMMAND: run it in the VM; the exit status is the command's.
guest() {
	local answer
	commands=$((commands + 1))
	"$VM" post "command-$boot-$commands" "$*"
	answer=$("$VM" wait-mark "done-$boot-$commands" --timeout 120)
	return "${answer##* }"
}

# kexec: into the next kernel at this instant; nothing is stopped or told.
kexec() { kexec_with ''; }

# kexec_with PARAMETERS: the same, with more kernel parameters.
kexec_with() {
	"$VM" post "command-$boot-$((commands + 1))" "jump $1"
	boot=$((boot + 1)) commands=0
	wait_boot
}

# leave_kernel: into the next kernel by `systemctl kexec`, which stops all services before.
leave_kernel() {
	"$VM" post "command-$boot-$((commands + 1))" leave
	boot=$((boot + 1)) commands=0
	wait_boot
}

end_vm() { "$VM" post "command-$boot-$((commands + 1))" exit; }

# --- the server ---------------------------------------------------------------------------------------

# start_server OPTION...: in the VM, and wait for its first reply.
start_server() {
	launch_server "$@"
	oracle wait --timeout 120 >/dev/null
}

# launch_server OPTION...: the same without waiting.
launch_server() {
	starts=$((starts + 1))
	guest "kvstore --port 6379 --bind 0.0.0.0 $* >/share/kvstore-$starts.log 2>&1 & echo \$! >/run/kvstore.pid"
}

kill_server() { guest kill_kvstore; }

# logged TEXT: the server said so.
logged() {
	grep -qF -- "$1" "$VM_SHARE/kvstore-$starts.log" || fail "the server did not say \"$1\""
}

# expect_attached: the store is the one that was there, and where it was, unless the environment of the
# whole VM says PV_RELOCATE=always.
expect_attached() {
	local origin=reattached
	[[ ${PV_RELOCATE:-} != always ]] || origin=relocated
	expect 'the origin' "$(field preserve_origin)" $origin
}

# server_ends: what was launched ends by itself.
server_ends() {
	local tries
	for ((tries = 0; tries < 100; tries++)); do
		guest kvstore_runs || return 0
		sleep 0.1
	done
	fail "kvstore does not end: $1"
}

# grow SEGMENTS FIRST-KEY: write until there are that many more segments.
grow() {
	local goal=$(($(field preserve_segments) + $1)) key=$2
	while (($(field preserve_segments) < goal)); do
		oracle load --keys 200 --first-key "$key" --value-bytes 8192 --pipeline 256 >"$work/grow"
		expect 'refused writes' "$(count "$work/grow" refused)" 0
		key=$((key + 200))
		((key < $2 + 10000)) || fail "no new segment after $((key - $2)) keys of 8 KiB"
	done
	say "  $((key - $2)) keys of 8 KiB: $(field preserve_segments) segments"
}

# field NAME: of INFO.
field() { oracle info "$1"; }

# preserve PREPARE|CANCEL: and check the state that is reached.
preserve() {
	oracle call PRESERVE "$1" >"$work/reply" || fail "PRESERVE $1: $(cat "$work/reply")"
	case $1 in
	PREPARE) expect "the state after PREPARE" "$(field preserve_state)" prepared ;;
	CANCEL) expect "the state after CANCEL" "$(field preserve_state)" serving ;;
	esac
}

# --- the oracle ---------------------------------------------------------------------------------------

oracle() {
	local args=()
	case $1 in load | write | verify) args=(--log "$log" --quiet) ;; esac
	"$ORACLE" "$1" --port "$VM_PORT_6379" "${args[@]}" "${@:2}"
}

# count FILE NAME: a figure of what the oracle printed.
count() { sed -n "s/^$2 //p" "$1"; }

# start_load: write until the server is gone.
start_load() {
	"$ORACLE" write --port "$VM_PORT_6379" --log "$log" --quiet --until-end --connections 4 \
		--pipeline 16 "$@" >"$work/load" &
	load_pid=$!
}

# acknowledged: how many writes have been so far, by the log.
acknowledged() { grep -c '^A' "$log"; }

# wait_writes N: until that many more have been acknowledged.
wait_writes() {
	local goal=$(($(acknowledged) + $1)) tries
	for ((tries = 0; tries < 900; tries++)); do
		kill -0 "$load_pid" 2>/dev/null || fail 'the load ended before the server was stopped'
		(($(acknowledged) < goal)) || return 0
		sleep 0.1
	done
	fail "no $1 writes within 90 s"
}

# stop_load: the server is gone. A kexec closes no connection: the load is told.
stop_load() {
	kill "$load_pid" 2>/dev/null || true
	wait "$load_pid" || fail "the load failed: $(cat "$work/load")"
	load_pid=
	say "  load: $(count "$work/load" acknowledged) acknowledged, $(count "$work/load" unanswered) unanswered"
	(($(count "$work/load" unanswered) > 0)) || fail 'nothing was in flight: the load was not interrupted'
	expect 'refused writes' "$(count "$work/load" refused)" 0
}

# wait_end: the server goes down by itself, and the load with it.
wait_end() {
	local tries
	for ((tries = 0; tries < 200; tries++)); do
		kill -0 "$load_pid" 2>/dev/null || break
		sleep 0.05
	done
	stop_load
}

# end_load: the server is still there; every reply is waited for.
end_load() {
	kill "$load_pid"
	wait "$load_pid" || fail "the load failed: $(cat "$work/load")"
	load_pid=
	expect 'unanswered writes' "$(count "$work/load" unanswered)" 0
}

# verify: every acknowledged write is there, and nothing else.
verify() {
	oracle verify >"$work/verify" || fail "writes are missing: $(tr '\n' ' ' <"$work/verify")"
	say "  verified: $(count "$work/verify" keys) keys, $(count "$work/verify" acknowledged) acknowledged writes, none lost"
}
