# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=sh
#
# What a scenario can call, beside the applets of busybox. `scripts/vm run --help` documents it.

vm_uptime() { cut -d' ' -f1 /proc/uptime; }

# vm_mark NAME [TEXT...]: tell the host that a point was reached. The host sees it by `scripts/vm
# wait-mark`; the file's modification time is the host's clock.
vm_mark() {
	_name=$1
	shift
	echo "vm-mark: $_name boot=$BOOT up=$(vm_uptime) $*"
	echo "boot=$BOOT up=$(vm_uptime) $*" >"/run/vm/marks/.$_name"
	mv "/run/vm/marks/.$_name" "/run/vm/marks/$_name"
}

# vm_until SECONDS COMMAND...: repeat a command until it succeeds.
vm_until() {
	_ticks=$(($1 * 10))
	shift
	while ! "$@"; do
		_ticks=$((_ticks - 1))
		if [ "$_ticks" -le 0 ]; then
			echo "vm: gave up waiting for: $*" >&2
			return 1
		fi
		sleep 0.1
	done
}

# vm_wait NAME [SECONDS]: wait for `scripts/vm post NAME [TEXT]` on the host and print its text.
vm_wait() {
	vm_until "${2:-60}" test -e "/run/vm/posts/$1" || return 1
	cat "/run/vm/posts/$1"
}

# vm_wait_port PORT [SECONDS]: wait until something in the VM listens on a TCP port. It looks into the
# kernel's tables (0A is LISTEN) and does not connect: a server under test sees only its own clients.
vm_wait_port() { vm_until "${2:-30}" grep -q "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$1") [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6; }

vm_fail() {
	echo "vm: FAILED: $*" >&2
	exit 1
}

# vm_kexec_load [PARAMETER...]: load the same kernel and initramfs for boot BOOT+1. Parameters are
# appended to the kernel command line, where the last word wins.
vm_kexec_load() {
	_line=
	# shellcheck disable=SC2013
	for _word in $(cat /proc/cmdline); do
		case $_word in
		vm.boot=*) _word=vm.boot=$((BOOT + 1)) ;;
		esac
		_line="$_line $_word"
	done
	/vm/kexec load /run/vm/bzImage /run/vm/initrd "${_line# }${*:+ $*}"
}

# vm_kexec_leave: go to the loaded kernel by way of a shutdown, with --system only: systemd stops every service
# first. Never returns.
vm_kexec_leave() {
	vm_mark "jump-$BOOT"
	systemctl --no-block kexec || vm_fail 'systemctl kexec failed'
	sleep 600
	vm_fail 'the shutdown did not come to an end'
}

# vm_kexec_jump: go to it at this instant; no process is told or stopped. Never returns. Only the network goes
# first: a kernel that takes its virtio-net away while it sends (7.2) now and then waits for ever for what
# that device has not sent yet.
vm_kexec_jump() {
	vm_mark "jump-$BOOT"
	ip link set eth0 down
	/vm/kexec jump || vm_fail 'the jump into the new kernel did not happen'
}

# vm_kexec [PARAMETER...]: both in one.
vm_kexec() {
	vm_kexec_load "$@" || vm_fail 'cannot load the new kernel'
	vm_kexec_jump
}
