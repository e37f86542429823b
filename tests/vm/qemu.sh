# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# The options are local variables of cmd_run in scripts/vm.
# shellcheck disable=SC2154,SC2054
#
# One run of QEMU: which accelerator, its command line, the console log, the watch over it.
# QEMU is ended by its process id only.

# --- accelerator --------------------------------------------------------------------------------------

# Some machines offer /dev/kvm and then hang in it, so KVM counts as usable only when a boot as far as
# the guest's init has been seen. The answer is kept until the host reboots.
qemu_accel() {
	local wanted=$1 kernel=$2 memo
	if [[ $wanted != auto ]]; then
		printf '%s\n' "$wanted"
		return
	fi
	if [[ ! -r /dev/kvm || ! -w /dev/kvm ]]; then
		printf 'tcg\n'
		return
	fi
	memo=$(vm_cache_dir)/accel-$(cat /proc/sys/kernel/random/boot_id)-$(id -u)
	if [[ ! -s $memo ]]; then
		rm -f "$(vm_cache_dir)"/accel-*-"$(id -u)"
		qemu_probe_kvm "$kernel" >"$memo.$$" && mv "$memo.$$" "$memo"
	fi
	cat "$memo"
}

qemu_probe_kvm() {
	local kernel=$1 dir
	dir=$(mktemp -d)
	initramfs_skeleton "$dir/root"
	initramfs_pack "$dir/root" "$dir/initrd"
	say "probing KVM (at most 15 s, once)"
	timeout -k 2 15 qemu-system-x86_64 -accel kvm -cpu max -m 512M -display none -nodefaults \
		-no-user-config -no-reboot -serial stdio -kernel "$kernel" -initrd "$dir/initrd" \
		-append 'console=ttyS0 panic=-1 vm.probe' </dev/null >"$dir/console" 2>&1 || true
	if grep -q 'vm-init: probe ok' "$dir/console"; then
		printf 'kvm\n'
	else
		say "KVM does not work here; using emulation"
		printf 'tcg\n'
	fi
	rm -rf "$dir"
}

# --- console log --------------------------------------------------------------------------------------

# Copies the console to a log line by line, with the host's seconds since the start of QEMU in front.
qemu_stamp() {
	local log=$1 line now start=${EPOCHREALTIME/[.,]/}
	while IFS= read -r line || [[ -n $line ]]; do
		line=${line//$'\r'/}
		now=$((${EPOCHREALTIME/[.,]/} - start))
		printf '%4d.%03d %s\n' $((now / 1000000)) $((now / 1000 % 1000)) "$line" >>"$log"
		[[ -z $verbose ]] || printf '%4d.%03d %s\n' $((now / 1000000)) $((now / 1000 % 1000)) "$line" >&2
	done
}

# --- the run --------------------------------------------------------------------------------------

# A port that nobody listens on, below the range from which Linux draws ephemeral ports.
qemu_free_port() {
	local port try
	for ((try = 0; try < 50; try++)); do
		port=$((20000 + RANDOM % 12000))
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			printf '%s\n' "$port"
			return
		fi
	done
	die "no free port found between 20000 and 32000"
}

# Fills qemu_args from the options of `run`; the caller set kernel, accel and run_dir.
qemu_command() {
	local netdev=user,id=net0,restrict=on item host guest params
	qemu_args=(qemu-system-x86_64 -name "vm-${scenario##*/}" -cpu max -m "$mem" -smp "$smp"
		-display none -nodefaults -no-user-config -no-reboot -serial stdio)
	if [[ $accel == tcg ]]; then
		qemu_args+=(-accel tcg,thread=multi)
	else
		qemu_args+=(-accel "$accel")
	fi
	for item in ${forwards[@]+"${forwards[@]}"}; do
		host=${item%%:*} guest=${item##*:}
		[[ $host != auto ]] || host=$(qemu_free_port)
		netdev+=,hostfwd=tcp:127.0.0.1:$host-:$guest
		export "VM_PORT_$guest=$host"
	done
	params="console=ttyS0 loglevel=5 panic=-1 oops=panic transparent_hugepage_shmem=advise"
	if [[ -n $luo ]]; then
		params+=" kho=on liveupdate=on"
	else
		params+=" kho=off"
	fi
	# The kernel hands unknown NAME=VALUE to its first process, as environment: it holds for every
	# program of every boot.
	params+=${PV_RELOCATE:+ PV_RELOCATE=$PV_RELOCATE}
	if [[ -n $system ]]; then
		params+=" vm.system systemd.unit=vm.target systemd.show_status=no systemd.tty.term.console=dumb"
		qemu_args+=(-virtfs "local,path=${system//,/,,},mount_tag=vmroot,security_model=none,id=vmroot,readonly=on")
	fi
	qemu_args+=(-kernel "$run_dir/bzImage" -initrd "$run_dir/initrd" -append "$params vm.boot=0${append:+ $append}"
		-netdev "$netdev" -device virtio-net-pci,netdev=net0,romfile=
		-virtfs "local,path=${run_dir//,/,,},mount_tag=vmctl,security_model=none,id=vmctl"
		-virtfs "local,path=${share//,/,,},mount_tag=vmshare,security_model=none,id=vmshare")
}

# What is running; empty again as soon as it was waited for, because a process id may be used again.
vm_qemu_pid=''
vm_driver_pid=''

end_qemu() {
	[[ -n $vm_qemu_pid ]] || return 0
	kill -KILL "$vm_qemu_pid" 2>/dev/null || true
	wait "$vm_qemu_pid" 2>/dev/null || true
	vm_qemu_pid=''
}

# The driver leads a process group of its own, so that its children end with it.
end_driver() {
	[[ -n $vm_driver_pid ]] || return 0
	if kill -TERM -- "-$vm_driver_pid" 2>/dev/null; then
		sleep 0.5
		kill -KILL -- "-$vm_driver_pid" 2>/dev/null || true
	fi
	wait "$vm_driver_pid" 2>/dev/null || true
	vm_driver_pid=''
}

show_log_end() {
	say "last console lines ($log):"
	tail -n 30 "$log" | sed 's/^/    /' >&2
}

# qemu_run: starts QEMU and the driver, waits for both, and returns the run's exit status: the
# scenario's, or one of those listed in the help.
qemu_run() {
	local console stamper status=0
	exec {console}> >(qemu_stamp "$log")
	stamper=$!
	on_exit 'end_driver; end_qemu'
	# pdeathsig: if this script is killed outright, QEMU does not stay behind.
	setpriv --pdeathsig KILL "${qemu_args[@]}" </dev/null >&"$console" 2>&1 &
	vm_qemu_pid=$!
	exec {console}>&-
	if [[ -n $driver ]]; then
		export VM=$VM_DIR/../../scripts/vm VM_RUN=$run_dir VM_SHARE=$share VM_LOG=$log VM_PID=$vm_qemu_pid
		set -m
		setpriv --pdeathsig TERM bash -c "$driver" </dev/null &
		vm_driver_pid=$!
		set +m
	fi
	qemu_watch $((SECONDS + timeout_s)) || status=$?
	end_driver
	end_qemu
	wait "$stamper" 2>/dev/null || true
	qemu_verdict "$status"
}

# qemu_watch DEADLINE: returns 0 when QEMU and the driver have ended by themselves, 123 or 124.
qemu_watch() {
	local deadline=$1
	while [[ -n $vm_qemu_pid$vm_driver_pid ]]; do
		if [[ -n $vm_driver_pid ]] && ! kill -0 "$vm_driver_pid" 2>/dev/null; then
			wait "$vm_driver_pid" || return 123
			vm_driver_pid=''
		fi
		if [[ -n $vm_qemu_pid ]] && ! kill -0 "$vm_qemu_pid" 2>/dev/null; then
			wait "$vm_qemu_pid" || true
			vm_qemu_pid=''
			# Without a good end of the scenario, a driver would wait for marks that never come.
			[[ -s $run_dir/status && $(cat "$run_dir/status") == 0 ]] || return 0
		fi
		((SECONDS < deadline)) || return 124
		sleep 0.1
	done
}

# qemu_verdict WATCH-STATUS: say what went wrong, and return the status of the run.
qemu_verdict() {
	local watch=$1 status
	if ((watch == 123)); then
		show_log_end
		say "the driver failed"
		return 123
	elif ((watch == 124)); then
		show_log_end
		say "timeout: not finished after $timeout_s s, ended"
		return 124
	elif [[ ! -s $run_dir/status ]]; then
		show_log_end
		say "the VM ended without a result from the scenario (kernel panic, or QEMU could not start)"
		return 125
	fi
	status=$(cat "$run_dir/status")
	if ((status != 0)); then
		show_log_end
		say "the scenario failed with status $status"
	fi
	return "$status"
}
