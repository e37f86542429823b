# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# Completion of preservectl for bash: commands, options, names of stores and files.

# Names of the stores in the directory that the command line names.
_preservectl_stores() {
	local i args=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		-r | --runtime-dir) args+=(-r "${COMP_WORDS[i + 1]}") ;;
		esac
	done
	preservectl list "${args[@]}" 2>/dev/null | sed -n '2,$s/ .*//p'
}

_preservectl() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
	local common='--json --runtime-dir --user --help' options='' words=''
	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		mapfile -t COMPREPLY < <(compgen -W 'agent list show dump check repair compact prepare cancel finish drop save restore
			doctor top --help --version' -- "$current")
		return
	fi
	case $previous in
	-r | --runtime-dir) mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
	-u | --user) mapfile -t COMPREPLY < <(compgen -u -- "$current"); return ;;
	-l | --level | -t | --threads | -d | --delay) return ;;
	esac
	case ${COMP_WORDS[1]} in
	agent)
		options='--socket --all --timeout --force'
		case $previous in
		-s | --socket) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
		*) words='list prepare cancel finish drop' ;;
		esac
		;;
	show) words=$(_preservectl_stores) ;;
	dump) options='--index --raw --roots' words=$(_preservectl_stores) ;;
	check) options='--fast --full --leaks --threads' words=$(_preservectl_stores) ;;
	repair) options='--dry-run --leaks --threads' words=$(_preservectl_stores) ;;
	compact) options='--dry-run' words=$(_preservectl_stores) ;;
	prepare | cancel | finish) options='--all' words=$(_preservectl_stores) ;;
	drop) options='--yes' words=$(_preservectl_stores) ;;
	save)
		options='--level --threads' words=$(_preservectl_stores)
		# The second word that is no option is a file.
		if [[ $previous != -* && $COMP_CWORD -gt 2 && $current != -* ]]; then
			mapfile -t COMPREPLY < <(compgen -f -- "$current")
			return
		fi
		;;
	restore)
		options='--force --name --new-uuid --threads --verify'
		case $previous in
		-n | --name) words=$(_preservectl_stores) ;;
		*)
			if [[ $current != -* ]]; then
				mapfile -t COMPREPLY < <(compgen -f -- "$current")
				return
			fi
			;;
		esac
		;;
	doctor)
		options='--kexec --unit'
		case $previous in
		-U | --unit)
			words=$(systemctl list-unit-files --no-legend --type=service 2>/dev/null | sed 's/ .*//')
			;;
		esac
		;;
	top) options='--delay --count' ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words $options $common" -- "$current")
}

complete -F _preservectl preservectl
