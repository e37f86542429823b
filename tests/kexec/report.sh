# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# How scripts/demo and its driver write to a terminal: aligned, and in colour only where somebody
# looks. Lines have the layout of the oracle's progress line.

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
	bold=$'\e[1m' dim=$'\e[2m' red=$'\e[1;31m' green=$'\e[32m' plain=$'\e[0m'
else
	bold='' dim='' red='' green='' plain=''
fi

title() { printf '\n%s%s%s\n\n' "$bold" "$*" "$plain"; }
step() { printf '  %-10s %s\n' "$1" "${*:2}"; }
alarm() { printf '  %s%-10s%s %s\n' "$red" "$1" "$plain" "${*:2}"; }

# row NAME VALUE [REMARK]: of the final table. Values are aligned at the right.
row() { printf '  %-28s %14s%s\n' "$1" "$2" "${3:+  $dim$3$plain}"; }

# verdict LOST OTHER: the line that matters.
verdict() {
	if (($1 + $2 == 0)); then
		printf '\n  %sEvery acknowledged write is there.%s\n\n' "$green" "$plain"
	else
		printf '\n  %sWRITES ARE MISSING OR WRONG: %s lost, %s torn, stale or invented.%s\n\n' "$red" "$1" "$2" "$plain"
	fi
}

# 1234567 -> 1,234,567
grouped() { sed ':a;s/\B[0-9]\{3\}\>/,&/;ta' <<<"$1"; }

# milliseconds MICROSECONDS
milliseconds() { LC_ALL=C awk -v us="$1" 'BEGIN { printf us < 10000 ? "%.2f ms" : "%.1f ms", us / 1000 }'; }

# count FILE NAME: a figure of what the oracle printed.
count() { sed -n "s/^$2 //p" "$1"; }
