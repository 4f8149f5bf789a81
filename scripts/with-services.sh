#!/usr/bin/env bash
#
# Runs a command with AMQP_URL and DATABASE_URL set.
#
#   scripts/with-services.sh COMMAND...            starts the private servers for it where they
#                                                  don't run yet, and stops those it started
#   scripts/with-services.sh --running COMMAND...  needs them running already
#
# Where both variables are set, they are used as they are and nothing is started.

set -euo pipefail

services=$(dirname -- "${BASH_SOURCE[0]}")/services.sh
readonly services
need_running=no
if [[ ${1:-} == --running ]]; then
    need_running=yes
    shift
fi

if [[ -z ${AMQP_URL:-} || -z ${DATABASE_URL:-} ]]; then
    if ! "$services" status >/dev/null 2>&1; then
        if [[ $need_running == yes ]]; then
            echo "no servers: start them with \`make run\` or \`make services-up\`, or set AMQP_URL and DATABASE_URL" >&2
            exit 1
        fi
        trap '"$services" down' EXIT
        # A signal ends the command, which shares our process group; then the trap runs.
        trap : INT TERM
        "$services" up
    fi
    # Into a variable first: `eval "$(…)"` would hide a failure.
    urls=$("$services" env)
    set -a
    eval "$urls"
    set +a
    # The private servers have only local receivers to serve.
    export ALLOW_NETWORKS=${ALLOW_NETWORKS-127.0.0.0/8,::1}
fi

# Not exec: the trap above has to run afterwards.
"$@"
