#!/usr/bin/env bash
#
# Installs the notifier as a systemd service, removes it, and controls it. `make install` and
# related targets call this; `scripts/install.sh help` lists the commands.
#
# With DESTDIR, all files go below that directory and nothing else is changed, as packagers need it: no
# user is created, no owner is changed, and systemd isn't reloaded.

set -euo pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
readonly SCRIPTS PREFIX DESTDIR

readonly NAME=webhook-notifier
# The user, and the group that may read the environment file.
readonly ACCOUNT=$NAME
readonly PROGRAM=$PREFIX/bin/$NAME
readonly SHARE=$PREFIX/share/$NAME
readonly MAN=$PREFIX/share/man
# Where each shell looks for completions by default.
readonly BASH_COMPLETION=$PREFIX/share/bash-completion/completions/$NAME
readonly ZSH_COMPLETION=$PREFIX/share/zsh/site-functions/_$NAME
readonly FISH_COMPLETION=$PREFIX/share/fish/vendor_completions.d/$NAME.fish
readonly ENV_FILE=/etc/$NAME.env
# Systemd looks for units below these two prefixes, and in /etc.
case $PREFIX in
    /usr | /usr/local) readonly UNITS=$PREFIX/lib/systemd/system ;;
    *) readonly UNITS=/etc/systemd/system ;;
esac

usage() {
    cat <<'USAGE'
Usage: scripts/install.sh COMMAND

  install BINARY  install the binary, the units, the environment file, the
                  manual, completions for bash, zsh and fish, Prometheus' rules
                  and Grafana's dashboard
  uninstall       stop the service, and remove all of that except the
                  environment file and the user
  start           start the service, now and at every boot
  stop            stop it until the next boot
  restart         stop it, and start the version that is installed now
  status          show the state of the service and of further instances
  logs [OPTION..] show their log by journalctl with these options; without any,
                  follow it

The variables PREFIX (/usr/local) and DESTDIR say where to install; see
`webhook-notifier help install`.
USAGE
}

say() { printf 'install: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# ---------------------------------------------------------------- files

# put_quietly MODE SOURCE PATH: writes a new file and renames it, so that a running program or an open file
# isn't changed.
put_quietly() {
    local mode=$1 source=$2 path=$DESTDIR$3
    install -D -m "$mode" -- "$source" "$path.new"
    mv -f -- "$path.new" "$path"
}

# The same, and reports it.
put() {
    put_quietly "$@"
    say "$DESTDIR$3"
}

# Installs what the binary generates: a manual page for each command, the guide, and completions.
put_manual() {
    local binary=$1 made page shell
    [[ $binary == */* ]] || binary=./$binary
    made=$(mktemp -d)
    "$binary" man --into "$made"
    # An older version may have had other pages.
    remove_manual
    for page in "$made"/man?/*; do
        put_quietly 644 "$page" "$MAN${page#"$made"}"
    done
    say "$DESTDIR$MAN: webhook-notifier(1), a page for each command, and the guide, webhook-notifier(7)"
    for shell in bash zsh fish; do
        "$binary" completions "$shell" >"$made/$shell"
    done
    put 644 "$made/bash" "$BASH_COMPLETION"
    put 644 "$made/zsh" "$ZSH_COMPLETION"
    put 644 "$made/fish" "$FISH_COMPLETION"
    rm -rf -- "$made"
}

remove_manual() {
    rm -f -- "$DESTDIR$MAN/man1/$NAME.1" "$DESTDIR$MAN/man1/$NAME"-*.1 "$DESTDIR$MAN/man7/$NAME.7" \
        "$DESTDIR$BASH_COMPLETION" "$DESTDIR$ZSH_COMPLETION" "$DESTDIR$FISH_COMPLETION"
}

# put_unit UNIT SED_OPTION...: installs a unit that sed derives from our only unit file.
put_unit() {
    local unit=$1 made
    shift
    made=$(mktemp)
    sed "$@" -- "$SCRIPTS/$NAME.service" >"$made"
    put 644 "$made" "$UNITS/$unit"
    rm -f -- "$made"
}

# An existing file is never overwritten: it contains the operator's settings.
put_env_file() {
    local missing
    if [[ ! -e $DESTDIR$ENV_FILE ]]; then
        put 640 "$SCRIPTS/$NAME.env" "$ENV_FILE"
        if [[ -z $DESTDIR ]]; then chown "root:$ACCOUNT" "$ENV_FILE"; fi
        return
    fi
    missing=$(comm -13 <(variables "$DESTDIR$ENV_FILE") <(variables "$SCRIPTS/$NAME.env") | paste -sd' ')
    say "$DESTDIR$ENV_FILE stays as it is${missing:+; it does not mention $missing: see $SHARE/$NAME.env}"
}

# The variables that a file sets, or mentions in a comment.
variables() { sed -nE 's/^[[:space:]]*#?[[:space:]]*([A-Z][A-Z0-9_]*)=.*/\1/p' -- "$1" | LC_ALL=C sort -u; }

# The names of the files for Prometheus and Grafana.
monitoring_files() {
    local file
    for file in "$SCRIPTS"/monitoring/*.{yml,json,md}; do
        if [[ -f $file ]]; then printf '%s\n' "${file##*/}"; fi
    done
}

# ---------------------------------------------------------------- the machine

# As in sd_booted(3).
systemd_runs() { [[ -d /run/systemd/system ]]; }

need_systemd() {
    systemd_runs || die "systemd is not running (is this a container?): have your supervisor run '$PROGRAM run --env-file $ENV_FILE'"
    systemctl cat "$NAME.service" >/dev/null 2>&1 || die "the service is not installed: run 'sudo make install'"
}

make_account() {
    if getent passwd "$ACCOUNT" >/dev/null; then return; fi
    useradd --system --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin "$ACCOUNT"
    say "created the user $ACCOUNT"
}

# ---------------------------------------------------------------- commands

install_all() {
    local binary=${1-} file
    [[ -x $binary ]] || die "there is no program $binary: run 'make build'"
    if [[ -z $DESTDIR ]]; then
        ((EUID == 0)) || die "needs root to install below $PREFIX and /etc: run 'sudo make install', or set DESTDIR"
        make_account
    fi
    umask 022
    put 755 "$binary" "$PROGRAM"
    put_unit "$NAME.service" -e "s|^ExecStart=[^ ]*|ExecStart=$PROGRAM|"
    # `%I`: an IPv6 address has brackets, which systemd-escape(1) encodes for a unit's name.
    put_unit "$NAME@.service" -e "s|^ExecStart=[^ ]*\(.*\)|ExecStart=$PROGRAM\1 --metrics-addr %I|" \
        -e 's|^Description=.*|&, a further instance|'
    put_manual "$binary"
    put 644 "$SCRIPTS/$NAME.env" "$SHARE/$NAME.env"
    put_env_file
    while read -r file; do
        put 644 "$SCRIPTS/monitoring/$file" "$SHARE/$file"
    done < <(monitoring_files)
    [[ -z $DESTDIR ]] || return 0
    if systemd_runs; then systemctl daemon-reload; fi
    say "next: edit $ENV_FILE, then '$NAME migrate --env-file $ENV_FILE', '$NAME check --env-file $ENV_FILE', 'make start'"
    say "a running service keeps its version until 'make restart'"
}

uninstall_all() {
    local file
    if [[ -z $DESTDIR ]]; then
        ((EUID == 0)) || die "needs root: run 'sudo make uninstall', or set DESTDIR"
        if systemd_runs; then
            systemctl disable --quiet --now "$NAME.service" 2>/dev/null || true
            systemctl stop "$NAME@*.service"
        fi
    fi
    rm -f -- "$DESTDIR$PROGRAM" "$DESTDIR$UNITS/$NAME.service" "$DESTDIR$UNITS/$NAME@.service" \
        "$DESTDIR$SHARE/$NAME.env"
    remove_manual
    while read -r file; do
        rm -f -- "$DESTDIR$SHARE/$file"
    done < <(monitoring_files)
    if [[ -d $DESTDIR$SHARE ]]; then rmdir --ignore-fail-on-non-empty -- "$DESTDIR$SHARE"; fi
    if [[ -z $DESTDIR ]] && systemd_runs; then systemctl daemon-reload; fi
    if [[ -e $DESTDIR$ENV_FILE ]]; then say "kept $DESTDIR$ENV_FILE: it contains your settings and passwords"; fi
    if [[ -z $DESTDIR ]]; then say "kept the user $ACCOUNT: 'userdel $ACCOUNT' removes it"; fi
}

main() {
    local verb=${1-}
    shift || true
    case $verb in
        start | stop | restart | status | logs) need_systemd ;;
    esac
    case $verb in
        install) install_all "$@" ;;
        uninstall) uninstall_all ;;
        start) systemctl enable --now "$NAME.service" ;;
        stop | restart) systemctl "$verb" "$NAME.service" ;;
        status) systemctl status --no-pager "$NAME.service" "$NAME@*.service" ;;
        logs)
            (($#)) || set -- --lines 100 --follow
            journalctl --unit "$NAME.service" --unit "$NAME@*.service" "$@"
            ;;
        help | -h | --help) usage ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
}

main "$@"
