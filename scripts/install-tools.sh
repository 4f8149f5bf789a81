#!/usr/bin/env bash
#
# Installs Debian packages without starting their services, now or at the next boot.
#
#   scripts/install-tools.sh PACKAGE[:COMMAND]...
#
# A package whose COMMAND exists already is skipped, and apt isn't called if nothing is missing.
# Concurrent runs take turns. Needs root only if something is missing.

set -euo pipefail

# The longest installation takes a minute.
readonly LOCK_TIMEOUT=600
readonly LOCK=/run/lock/webhook-notifier-install.lock

say() { printf 'install-tools: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# The missing packages, one per line.
missing_of() {
    local tool
    for tool in "$@"; do
        [[ $tool == *:* ]] && command -v "${tool#*:}" >/dev/null || echo "${tool%%:*}"
    done
}

# A subshell, for the EXIT trap.
apt_install() (
    policy=/usr/sbin/policy-rc.d
    policy_saved=$policy.saved-by-webhook-notifier
    cluster_conf_dir=/etc/postgresql-common/createcluster.d
    cluster_conf=$cluster_conf_dir/webhook-notifier.conf

    # shellcheck disable=SC2317  # called by the trap
    restore() {
        if [[ -e $policy_saved ]]; then mv -f -- "$policy_saved" "$policy"; else rm -f -- "$policy"; fi
        rm -f -- "$cluster_conf"
        rmdir --ignore-fail-on-non-empty -- "$cluster_conf_dir" || true
    }
    trap restore EXIT
    trap 'exit 130' INT TERM HUP

    # Exit code 101 forbids the packages' scripts to start anything. If a saved policy exists already, an
    # earlier run has left it, which could not restore it.
    if [[ -e $policy && ! -e $policy_saved ]]; then mv -- "$policy" "$policy_saved"; fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    # Otherwise PostgreSQL's package would create a cluster for a server that nobody starts.
    mkdir -p -- "$cluster_conf_dir"
    echo 'create_main_cluster = false' >"$cluster_conf"

    units=$(units_started_at_boot)
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    apt_get_install "$@" || { sleep 3 && apt_get_install "$@"; } ||
        die "apt-get could not install $*: see its messages above"
    for unit in $(units_started_at_boot); do
        grep -qxF -- "$unit" <<<"$units" || systemctl disable "$unit" >&2 || true
    done
)

apt_get_install() {
    apt-get update -q >&2 &&
        apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" >&2
}

units_started_at_boot() {
    systemctl list-unit-files --state=enabled --no-legend 2>/dev/null | awk '{ print $1 }' || true
}

(($#)) || die "name at least one PACKAGE[:COMMAND]"
# The files that apt creates must be readable, even if the caller's umask is stricter.
umask 022
mapfile -t missing < <(missing_of "$@")
((${#missing[@]})) || exit 0
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    die "not installed: ${missing[*]}. Install them with your package manager, for example: sudo apt-get install ${missing[*]}"
fi
exec 9>"$LOCK"
flock -w "$LOCK_TIMEOUT" 9 ||
    die "another installation has held $LOCK for over $LOCK_TIMEOUT s: end it and try again"
# The run that held the lock may have installed them.
mapfile -t missing < <(missing_of "$@")
((${#missing[@]})) || exit 0
say "installing ${missing[*]}"
# A process that a package starts nevertheless must not inherit the lock.
apt_install "${missing[@]}" 9>&-
commands=()
for tool in "$@"; do [[ $tool != *:* ]] || commands+=("$tool"); done
mapfile -t missing < <(missing_of "${commands[@]}")
((${#missing[@]} == 0)) || die "installed, but still not found: ${missing[*]}"
