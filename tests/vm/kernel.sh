# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# The test kernel: Debian's linux-source package, tinyconfig plus kernel.config, built once into the
# cache. Debian's ready kernels have kexec handover off, so there is no way around building one.
#
# Where the source comes from, and why it can be trusted: debian.sh. Debian 12 has no kernel new enough, a
# newer suite on the same mirror has.
#
# The cache: $XDG_CACHE_HOME/libpreserve/kernel/SOURCEVERSION-CONFIGHASH/{bzImage,config,System.map}.
# An entry appears by rename when it is complete; the build tree is removed whatever happens.

# Wanted series; where the mirror has moved on, the next newer one is taken.
KERNEL_SERIES=${VM_KERNEL_SERIES:-7.2}
readonly KERNEL_SUITES=(trixie-backports forky sid)

kernel_fragment() { printf '%s\n' "$VM_DIR/kernel.config"; }

kernel_config_hash() { sha256sum "$(kernel_fragment)" | cut -c1-12; }

# The best complete entry for this configuration: of the wanted series the newest, else of a later
# series (which is what gets built where the mirror has moved on).
kernel_find_cached() {
	local dir version exact='' later=''
	while IFS= read -r dir; do
		[[ -s $dir/bzImage ]] || continue
		version=${dir##*/}
		if [[ $version == "$KERNEL_SERIES".* ]]; then
			exact=$dir
		elif [[ $(printf '%s\n' "$KERNEL_SERIES" "$version" | sort -V | head -n 1) == "$KERNEL_SERIES" ]]; then
			later=$dir
		fi
	done < <(printf '%s\n' "$(vm_cache_dir)"/kernel/*-"$(kernel_config_hash)" | sort -V)
	dir=${exact:-$later}
	[[ -n $dir ]] && printf '%s\n' "$dir/bzImage"
}

# kernel_path [REBUILD]: print the path of the kernel image, building it first if it is not in the
# cache, or if REBUILD is not empty. Only one build at a time; who comes second waits and finds it in the cache.
kernel_path() {
	local rebuild=${1:-} cache found lock
	[[ $(uname -m) == x86_64 ]] || die "the test VM is x86-64 only so far, this machine is $(uname -m)"
	if [[ -z $rebuild ]] && found=$(kernel_find_cached); then
		printf '%s\n' "$found"
		return
	fi
	cache=$(vm_cache_dir)
	mkdir -p "$cache/kernel"
	exec {lock}>"$cache/kernel.lock"
	if ! flock --nonblock "$lock"; then
		say "another build of the kernel is running; waiting for it"
		flock "$lock"
	fi
	if [[ -n $rebuild ]] || ! kernel_find_cached >/dev/null; then
		kernel_build "$cache"
	fi
	exec {lock}>&-
	kernel_find_cached || die "the kernel was built but is not in $cache/kernel"
}

# --- the source --------------------------------------------------------------------------------------

# The linux-source package to build, from the index now in ROOT: the wanted series if it is there,
# else the lowest newer one.
kernel_pick_package() {
	local root=$1 series pick=''
	while read -r series; do
		if [[ $series == "$KERNEL_SERIES" ]]; then
			pick=$series
			break
		fi
		# Sorted upwards, so the first one that is not older than the wanted series stays.
		if [[ -z $pick && $(printf '%s\n' "$KERNEL_SERIES" "$series" | sort -V | head -n 1) == "$KERNEL_SERIES" ]]; then
			pick=$series
		fi
	done < <(debian_apt "$root" apt-cache pkgnames linux-source- |
		sed -n 's/^linux-source-\([0-9][0-9.]*\)$/\1/p' | sort -V)
	[[ -z $pick ]] || printf 'linux-source-%s\n' "$pick"
}

# kernel_locate ROOT: leave the private root pointing at a suite that has a usable linux-source and
# print its name.
kernel_locate() {
	local root=$1 mirror suite keyring found newer tried=()
	keyring=$(debian_machine_keyring)
	local mirrors
	mapfile -t mirrors < <(debian_mirrors)
	((${#mirrors[@]} > 0)) || die "apt knows no package source on this machine (apt-get --print-uris update printed none)"
	for mirror in "${mirrors[@]}"; do
		for suite in "${KERNEL_SUITES[@]}"; do
			if ! debian_suite "$root" "$mirror" "$suite" "$keyring"; then
				tried+=("$suite: $(grep -E '^[EW]: ' "$root/update.log" | head -n 1)")
				continue
			fi
			found=$(kernel_pick_package "$root")
			if [[ -n $found ]]; then
				printf '%s\n' "$found"
				return
			fi
			tried+=("$suite: no linux-source of $KERNEL_SERIES or newer")
		done
	done
	die "no source for a kernel $KERNEL_SERIES or newer on this machine's mirrors:$(printf '\n    %s' "${tried[@]}")"
}

# --- the build --------------------------------------------------------------------------------------

# kernel_build CACHE: fetch, configure, build, install into the cache. The caller holds the lock.
kernel_build() {
	local cache=$1 work package deb version start=$SECONDS
	need_commands apt-get dpkg-deb xz make gcc flex bison bc cpio sha256sum setpriv
	# With the lock held, any work folder is the remains of a build that was killed.
	rm -rf "$cache"/kernel-build.*
	work=$(mktemp -d "$cache/kernel-build.XXXXXX")
	on_exit "rm -rf '$work'"

	say "looking for linux-source-$KERNEL_SERIES"
	package=$(kernel_locate "$work/apt") || exit
	say "downloading $package (about 165 MB)"
	(cd "$work" && debian_apt "$work/apt" apt-get download "$package") >"$work/download.log" 2>&1 ||
		die "cannot download $package: $(tail -n 1 "$work/download.log")"
	deb=$(ls "$work"/"$package"_*.deb)
	version=$(dpkg-deb -f "$deb" Version)

	say "unpacking $package $version (about 2 GB while it is built, removed afterwards)"
	dpkg-deb -x "$deb" "$work/deb"
	rm -f "$deb"
	mkdir "$work/src"
	tar -xf "$work/deb/usr/src/$package.tar.xz" -C "$work/src" --strip-components=1
	rm -rf "$work/deb"
	kernel_configure "$work/src" "$work/obj"
	kernel_make "$work/src" "$work/obj" "$work/build.log"
	kernel_install "$work" "$cache/kernel/$version-$(kernel_config_hash)"
	rm -rf "$work"
	say "kernel $version is ready after $((SECONDS - start)) s"
}

kernel_configure() {
	local src=$1 obj=$2 line lost=()
	mkdir -p "$obj"
	# Later lines win over tinyconfig's; kconfig warns about each, which is of no interest.
	{
		make -s -C "$src" O="$obj" tinyconfig &&
			cat "$(kernel_fragment)" >>"$obj/.config" &&
			make -s -C "$src" O="$obj" olddefconfig
	} >"$obj/configure.log" 2>&1 || { cat "$obj/configure.log" >&2; die "cannot configure the kernel"; }
	while IFS= read -r line; do
		grep -qxF -- "$line" "$obj/.config" || lost+=("$line")
	done < <(grep -E '^(# )?CONFIG_[^ ]*(=| is not set$)' "$(kernel_fragment)")
	((${#lost[@]} == 0)) ||
		die "this kernel's configuration does not accept: ${lost[*]} (renamed, or a dependency is missing)"
}

# Runs make in the background and reports every 20 seconds how far it is.
kernel_make() {
	local src=$1 obj=$2 log=$3 jobs pid next=20 start=$SECONDS
	jobs=$(nproc)
	say "building with $jobs jobs (about five minutes on two cores)"
	# pdeathsig: if this script is killed outright, the build does not go on behind its back.
	setpriv --pdeathsig TERM make -C "$src" O="$obj" -j"$jobs" bzImage >"$log" 2>&1 &
	pid=$!
	on_exit "kill $pid 2>/dev/null; wait $pid 2>/dev/null"
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		if ((SECONDS - start >= next)); then
			say "  $((SECONDS - start)) s: $(grep -cE '^  (CC|AS|AR|LD)' "$log") files built"
			next=$((next + 20))
		fi
	done
	if ! wait "$pid"; then
		tail -n 20 "$log" >&2
		die "the kernel build failed (last lines above)"
	fi
}

kernel_install() {
	local work=$1 entry=$2
	mkdir "$work/entry"
	cp "$work/obj/arch/x86/boot/bzImage" "$work/obj/System.map" "$work/entry/"
	cp "$work/obj/.config" "$work/entry/config"
	rm -rf "$entry"
	mv -T "$work/entry" "$entry"
}
