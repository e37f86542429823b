# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# The root of `scripts/vm run --system`: a Debian with a systemd that carries descriptors through a kexec
# (261 or later), as a tree of files that the VM sees read-only.
#
# The packages come from a newer suite of the machine's own mirror (debian.sh) and are unpacked, not
# installed: no script of theirs runs, so neither root nor a chroot is needed, and it takes half a minute.
# What those scripts would have done and systemd needs is done by guest-system and by systemd itself at
# boot (users, /var). Documentation and translations are left out.
#
# The cache: $XDG_CACHE_HOME/libpreserve/system/VERSION-HASH, by the version of systemd and what is in this
# file. An entry appears by rename when it is complete.

readonly SYSTEM_SUITES=(sid forky)
readonly SYSTEM_PACKAGES=(base-files systemd libseccomp2 util-linux mount)
readonly SYSTEM_OLDEST=261

system_hash() { sha256sum "$VM_DIR/system.sh" | cut -c1-12; }

system_find_cached() {
	local dir
	dir=$(printf '%s\n' "$(vm_cache_dir)"/system/*-"$(system_hash)" | sort -V | tail -n 1)
	[[ -x $dir/usr/lib/systemd/systemd ]] && printf '%s\n' "$dir"
}

# system_path: print the path of the tree, making it first if it is not in the cache.
system_path() {
	local cache lock
	system_find_cached && return
	cache=$(vm_cache_dir)
	mkdir -p "$cache/system"
	exec {lock}>"$cache/system.lock"
	flock "$lock"
	system_find_cached >/dev/null || system_build "$cache"
	exec {lock}>&-
	system_find_cached || die "the system was made but is not in $cache/system"
}

# system_download WORK: the packages and all that they depend on, into WORK/apt/cache/archives. apt takes
# it for an empty machine. Fails if what is there is too old.
system_download() {
	local root=$1/apt deb version
	debian_apt "$root" apt-get install --download-only -y --no-install-recommends \
		-o Debug::NoLocking=1 -o APT::Get::List-Cleanup=0 "${SYSTEM_PACKAGES[@]}" >"$1/download.log" 2>&1 ||
		return 1
	deb=$(printf '%s\n' "$root"/cache/archives/systemd_*.deb | head -n 1)
	version=$(dpkg-deb -f "$deb" Version) || return 1
	printf 'systemd %s there, %s wanted\n' "$version" "$SYSTEM_OLDEST" >>"$1/download.log"
	((${version%%[^0-9]*} >= SYSTEM_OLDEST)) && printf '%s\n' "$version"
}

# system_build CACHE: the caller holds the lock.
system_build() {
	local cache=$1 work mirror suite keyring version='' start=$SECONDS mirrors tried=()
	need_commands apt-get dpkg-deb sha256sum
	rm -rf "$cache"/system-build.*
	work=$(mktemp -d "$cache/system-build.XXXXXX")
	on_exit "rm -rf '$work'"
	keyring=$(debian_machine_keyring)
	mapfile -t mirrors < <(debian_mirrors)
	((${#mirrors[@]} > 0)) || die "apt knows no package source on this machine"
	for mirror in "${mirrors[@]}"; do
		for suite in "${SYSTEM_SUITES[@]}"; do
			say "downloading systemd from $suite (about 30 MB)"
			if ! debian_suite "$work/apt" "$mirror" "$suite" "$keyring"; then
				tried+=("$suite: $(grep -E '^[EW]: ' "$work/apt/update.log" | head -n 1)")
			elif version=$(system_download "$work"); then
				break 2
			else
				tried+=("$suite: $(tail -n 1 "$work/download.log")")
			fi
		done
	done
	[[ -n $version ]] || die "no systemd $SYSTEM_OLDEST or newer on this machine's mirrors:$(printf '\n    %s' "${tried[@]}")"
	system_unpack "$work/apt/cache/archives" "$work/tree"
	mv -T "$work/tree" "$cache/system/$version-$(system_hash)"
	rm -rf "$work"
	say "a system with systemd $version is ready after $((SECONDS - start)) s"
}

# system_unpack DEBS TREE: base-files first, for it says that /bin is /usr/bin.
system_unpack() {
	local deb
	mkdir "$2"
	for deb in "$1"/base-files_*.deb "$1"/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" |
			tar -x -C "$2" --no-same-owner --keep-directory-symlink \
				--exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' ||
			die "cannot unpack ${deb##*/}"
	done
	# The machine gets its name for itself at each boot.
	: >"$2/etc/machine-id"
}
