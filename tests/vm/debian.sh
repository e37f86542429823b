# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# Packages of a newer Debian than the machine's, for inside of the virtual machine only: the kernel's source
# (kernel.sh) and a system with a new systemd (system.sh).
#
# Where they come from. The mirror is whatever the machine's apt is configured for (asked of apt itself, so
# deb822, one-line files, proxies and credentials all count). A private apt root in the cache folder names
# the newer suite, so the machine's own package lists and sources are neither used up nor changed, and root
# is not needed.
#
# Why they can be trusted. The suite's Release file must be signed by a key of debian-archive-keyring; apt
# checks the packages against the hashes in it. A Debian 12 point release carries the next release's keys.
# Where the machine's keyring is older, a newer keyring package is taken from the machine's own release
# (verified with the keyring the machine already trusts) and used for this only. Nothing unsigned is ever
# accepted. Check-Valid-Until is off, because frozen mirrors are common in CI.

# Base addresses of the mirrors that serve the machine's own release, in the machine's order.
# `--print-uris update` needs no lists, no root and no network. Third-party repositories may slip in
# when they use the release's name; they fail the signature check later and are passed over.
debian_mirrors() {
	local codename
	codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
	apt-get --print-uris update 2>/dev/null |
		sed -n "s|^'\(.*\)/dists/\([^/']*\)/InRelease' .*|\2 \1|p" |
		awk -v own="$codename" '$1 == own { print $2; next } { later[++n] = $2 }
			END { for (i = 1; i <= n; i++) print later[i] }' |
		awk '!seen[$0]++'
}

# debian_apt ROOT TOOL ARGUMENT...: apt-get or apt-cache with state, sources and cache inside ROOT.
# Proxies, credentials and CA settings of the machine stay in force; its package pins do not.
debian_apt() {
	local root=$1 tool=$2
	shift 2
	"$tool" -q \
		-o Dir::State="$root/state" -o Dir::State::lists="$root/lists" \
		-o Dir::State::status="$root/status" -o Dir::Cache="$root/cache" \
		-o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
		-o APT::Sandbox::User=root -o Acquire::Languages=none \
		-o Acquire::Check-Valid-Until=false -o Acquire::AllowInsecureRepositories=false \
		"$@" </dev/null
}

# debian_apt_use ROOT MIRROR SUITE KEYRING: point the private root at one suite and fetch its index.
# The output of a failed try goes to ROOT/update.log; it fails if the signature is not good.
debian_apt_use() {
	local root=$1 mirror=$2 suite=$3 keyring=$4
	rm -rf "${root:?}/lists" "${root:?}/cache"
	mkdir -p "$root/state" "$root/lists/partial" "$root/cache/archives/partial"
	: >"$root/status"
	printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >"$root/sources.list"
	debian_apt "$root" apt-get -o APT::Update::Error-Mode=any update >"$root/update.log" 2>&1
}

# The machine's keyring; Debian 13 and later also use the suffix .pgp.
debian_machine_keyring() {
	local k
	for k in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		if [[ -r $k ]]; then
			printf '%s\n' "$k"
			return
		fi
	done
	die "no debian-archive-keyring in /usr/share/keyrings; install the package debian-archive-keyring"
}

# If the index in ROOT failed for want of a key: take a newer keyring package from the machine's own
# release, trusted through the machine's keyring, and try again with that.
debian_retry_newer_key() {
	local root=$1 mirror=$2 suite=$3 keyring=$4 codename newer
	grep -q NO_PUBKEY "$root/update.log" || return 1
	codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
	debian_apt_use "$root" "$mirror" "$codename" "$keyring" || return 1
	rm -rf "$root/keyring" "$root"/debian-archive-keyring_*.deb
	(cd "$root" && debian_apt "$root" apt-get download debian-archive-keyring) >>"$root/update.log" 2>&1 || return 1
	dpkg-deb -x "$root"/debian-archive-keyring_*.deb "$root/keyring"
	newer=$root/keyring/usr/share/keyrings/debian-archive-keyring.gpg
	[[ -r $newer ]] || return 1
	debian_apt_use "$root" "$mirror" "$suite" "$newer"
}

# debian_suite ROOT MIRROR SUITE KEYRING: the same, with a newer keyring where one is needed.
debian_suite() { debian_apt_use "$@" || debian_retry_newer_key "$@"; }
