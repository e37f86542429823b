# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# What the parts of scripts/vm share: messages, the cache folder, clean-up at exit. Everything that is
# not a result goes to standard error, so that `scripts/vm kernel` can be used in $(...).

say() { printf 'vm: %s\n' "$*" >&2; }

die() {
	printf 'vm: error: %s\n' "$*" >&2
	exit 125
}

usage_error() {
	printf 'vm: error: %s (see scripts/vm --help)\n' "$*" >&2
	exit 2
}

# The C compiler; CC may carry arguments, as in "ccache gcc".
# shellcheck disable=SC2034
read -ra vm_cc <<<"${CC:-cc}"

vm_cache_dir() { printf '%s\n' "${XDG_CACHE_HOME:-$HOME/.cache}/libpreserve"; }

# Commands to be run at exit, last registered first. Each must be safe to run twice.
vm_cleanups=()
on_exit() { vm_cleanups+=("$1"); }
run_cleanups() {
	local status=$? i
	for ((i = ${#vm_cleanups[@]} - 1; i >= 0; i--)); do
		eval "${vm_cleanups[i]}" || true
	done
	vm_cleanups=()
	return "$status"
}
trap run_cleanups EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The commands that a step needs, named together instead of one failure at a time.
need_commands() {
	local missing=() c
	for c; do
		command -v "$c" >/dev/null 2>&1 || missing+=("$c")
	done
	((${#missing[@]} == 0)) ||
		die "missing commands: ${missing[*]} (run scripts/setup --vm)"
}
