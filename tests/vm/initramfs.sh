# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# The options are local variables of cmd_run in scripts/vm.
# shellcheck disable=SC2154
#
# The initramfs of a run: busybox, the init and library of the guest, the scenario, and the programs
# under test with the shared libraries that they need, taken from this machine. Nothing here needs
# root: the kernel's built-in archive has /dev/console, and cpio writes every file as root's.

# A busybox that needs no libraries: unpacked by scripts/setup, or installed.
static_busybox() {
	local busybox
	for busybox in "$(vm_cache_dir)/bin/busybox" "$(command -v busybox || true)"; do
		if [[ -x $busybox && $(LC_ALL=C ldd "$busybox" 2>&1) != *' => '* ]]; then
			printf '%s\n' "$busybox"
			return
		fi
	done
	die "there is no statically linked busybox here (run scripts/setup --vm)"
}

# initramfs_skeleton ROOT: what every initramfs has.
initramfs_skeleton() {
	local root=$1 busybox applet
	busybox=$(static_busybox)
	mkdir -p "$root"/{bin,dev,etc,lib,proc,root,run,sys,tmp,usr/local/bin,vm}
	cp "$busybox" "$root/bin/busybox"
	for applet in $("$busybox" --list); do
		[[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
	done
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	printf '127.0.0.1 localhost vm\n' >"$root/etc/hosts"
	install -m 755 "$VM_DIR/guest-init" "$root/init"
	install -m 644 "$VM_DIR/guest-lib.sh" "$VM_DIR/guest-system" "$root/vm/"
	install -m 755 "$VM_DIR/guest-run" "$root/vm/guest-run"
	"${vm_cc[@]}" -static -O1 -o "$root/vm/kexec" "$VM_DIR/kexec.c" ||
		die "cannot build tests/vm/kexec.c with ${vm_cc[*]}"
}

# initramfs_pack ROOT FILE: make the archive and remove the tree.
initramfs_pack() {
	(cd "$1" && find . -print0 | LC_ALL=C sort -z |
		cpio --quiet --null -o -H newc --owner=0:0 | gzip -1) >"$2"
	rm -rf "$1"
}

# initramfs_copy ROOT SOURCE DESTINATION: copy, and refuse to put two different files in one place.
initramfs_copy() {
	local to=$1/${3#/}
	[[ -f $2 ]] || die "no such file: $2"
	if [[ -e $to ]] && ! cmp -s "$2" "$to"; then
		die "two different files want to be $3 in the VM, one of them is $2"
	fi
	mkdir -p "${to%/*}"
	cp -L "$2" "$to"
}

# initramfs_program ROOT SOURCE[:DESTINATION]: a program and its shared libraries. Libraries go to
# /lib by name, wherever a run path of the build tree found them on this machine.
initramfs_program() {
	local root=$1 source=${2%%:*} dest line name path
	dest=/usr/local/bin/${source##*/}
	[[ $2 != *:* ]] || dest=${2#*:}
	initramfs_copy "$root" "$source" "$dest"
	chmod 755 "$root/${dest#/}"
	while IFS= read -r line; do
		case $line in
		*'not found'*) die "$source needs a library that is missing here: ${line# *}" ;;
		*' => /'*)
			name=${line%% => *} path=${line#* => }
			initramfs_copy "$root" "${path% (*}" "/lib/${name//[[:space:]]/}"
			;;
		*/ld-linux*)
			path=${line%% (*}
			path=${path//[[:space:]]/}
			initramfs_copy "$root" "$path" "$path"
			;;
		esac
	done < <(LC_ALL=C ldd "$source" 2>/dev/null || true)
}

# initramfs_build WORK: uses the arrays programs and files and the variables scenario and system of the
# caller, leaves WORK/initrd.
initramfs_build() {
	local work=$1 root=$1/root item libgcc
	initramfs_skeleton "$root"
	cp "$scenario" "$root/vm/scenario" || die "cannot read the scenario $scenario"
	# guest-system moves them on into the system.
	[[ -z $system ]] || root=$root/system
	mkdir -p "$root/lib"
	for item in ${programs[@]+"${programs[@]}"}; do
		initramfs_program "$root" "$item"
	done
	for item in ${files[@]+"${files[@]}"}; do
		[[ $item == *:/* ]] || usage_error "--file wants SOURCE:/DESTINATION, not $item"
		initramfs_copy "$root" "${item%%:*}" "${item#*:}"
	done
	# glibc loads this one by name when a thread is cancelled or exits.
	libgcc=$("${vm_cc[@]}" -print-file-name=libgcc_s.so.1 2>/dev/null || true)
	[[ ! -f $libgcc || ! -e $root/lib/libc.so.6 ]] ||
		initramfs_copy "$root" "$libgcc" /lib/libgcc_s.so.1
	initramfs_pack "$work/root" "$work/initrd"
}
