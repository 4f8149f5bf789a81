#!/usr/bin/env bash
#
# Runs a command with AMQP_URL and DATABASE_URL set.
#
#   scripts/with-services.sh COMMAND...            starts the private servers for the command if they
#                                                  aren't running yet, and stops them afterwards
#   scripts/with-services.sh --running COMMAND...  fails if they aren't running yet
#
# If both variables are set, they are used as they are and nothing is started.

set -euo pipefail

here=$(dirname -- "${BASH_SOURCE[0]}")
readonly SERVICES=$here/services.sh
readonly LOCAL=${WEBHOOK_NOTIFIER_LOCAL_DIR:-$here/../.local}
# This file exists while the running servers were started by this script, and not by `make services-up`.
readonly OURS=$LOCAL/started-by-make
need_running=no
if [[ ${1:-} == --running ]]; then
    need_running=yes
    shift
fi

# Several commands may use the servers at once. Each holds a shared lock; the last one to end can get
# it exclusively, and stops the servers.
start_servers() {
    mkdir -p "$LOCAL"
    exec 9>"$LOCAL/users.lock"
    flock -s 9
    if ! "$SERVICES" status >/dev/null 2>&1 9>&-; then
        : >"$OURS"
        "$SERVICES" up 9>&-
    fi
}

# shellcheck disable=SC2317  # called by the trap
stop_servers() {
    if [[ -e $OURS ]] && flock -xn 9; then
        "$SERVICES" down 9>&-
        rm -f "$OURS"
    fi
}

if [[ -z ${AMQP_URL:-} || -z ${DATABASE_URL:-} ]]; then
    if [[ $need_running == no ]]; then
        trap stop_servers EXIT
        start_servers
    elif ! "$SERVICES" status >/dev/null 2>&1; then
        echo "no servers: start them with \`make run\` or \`make services-up\`, or set AMQP_URL and DATABASE_URL" >&2
        exit 1
    fi
    # Into a variable first: `eval "$(…)"` would hide a failure.
    urls=$("$SERVICES" env)
    set -a
    eval "$urls"
    set +a
    # In trials with the private servers, receivers are local.
    export ALLOW_NETWORKS=${ALLOW_NETWORKS-127.0.0.0/8,::1}
fi

# In the background, so that a signal is passed on at once, but with our standard input. Bash makes
# background commands ignore SIGINT; `env` undoes that.
env --default-signal=INT "$@" 9>&- <&0 &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM
# Ctrl-C reaches the child anyway, since it is in the terminal's process group.
trap : INT
code=0
while :; do
    wait "$child" && code=0 || code=$?
    # A signal ends the wait, not the child.
    kill -0 "$child" 2>/dev/null || break
done
exit "$code"
