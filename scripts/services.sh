#!/usr/bin/env bash
#
# A private RabbitMQ and a private PostgreSQL for development, demo and tests, or clusters of them.
# Run `scripts/services.sh help` for the commands.
#
# Both servers listen on loopback only, on free ports that are chosen once, and
# keep all their files under .local/. So they share nothing with the servers of
# the system or of another checkout. A server's processes are identified by
# their properties (the broker's by an environment variable, PostgreSQL's by
# their working directory), never by a saved pid alone: after a crash or a
# reboot, that pid may belong to another process.

set -euo pipefail

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
LOCAL=${WEBHOOK_NOTIFIER_LOCAL_DIR:-$REPO/.local}
[[ $LOCAL == /* ]] || LOCAL=$PWD/$LOCAL
readonly REPO LOCAL

readonly SERVICES=(broker postgres)
readonly STATE=$LOCAL/services.env
readonly LOGS=$LOCAL/log
readonly SYNC=${SERVICES_SYNC:-yes}
readonly LOCK_TIMEOUT=180

# Saved in $STATE, so that restarts don't change the URLs.
BROKER_PORT='' BROKER_DIST_PORT='' EPMD_PORT='' BROKER_PASSWORD=''
POSTGRES_PORT='' POSTGRES_PASSWORD=''
# 'yes' if the servers also accept TLS, and RabbitMQ's port for it; PostgreSQL
# uses one port for both.
TLS='' BROKER_TLS_PORT=''
# In a cluster: the names of its RabbitMQ nodes, and the directory of the other PostgreSQL.
NODES='' PEER=''
# The root directories of other systems whose RabbitMQ and PostgreSQL are run; this machine's own if empty.
readonly WANTED_BROKER_ROOT=${BROKER_ROOT-} WANTED_POSTGRES_ROOT=${POSTGRES_ROOT-}
BROKER_ROOT=$WANTED_BROKER_ROOT POSTGRES_ROOT=$WANTED_POSTGRES_ROOT

usage() {
    cat <<'USAGE'
Usage: scripts/services.sh COMMAND

  up [--tls|--cluster]
                  start both servers and wait until they answer (as root,
                  install missing ones first); --tls creates a CA and enables
                  TLS on both, now and for later starts; --cluster starts
                  three RabbitMQ nodes, and a PostgreSQL primary with a
                  streaming standby
  down [--purge]  stop all servers; --purge also deletes their data
  status          show which servers run; exit 0 only if all do
  env [--tls]     print AMQP_URL and DATABASE_URL; with --tls those for TLS,
                  and TLS_CA_FILE
  start NAME      start one server with the data it had
  stop NAME       stop one server gracefully
  kill NAME       kill one server with SIGKILL, like a crash
  freeze NAME     suspend one server's processes (SIGSTOP)
  thaw NAME       resume them (SIGCONT)
  isolate NAME    disconnect a RabbitMQ node from the others of its cluster
  rejoin NAME     let it connect to them again
  promote         make PostgreSQL's standby the primary; the primary must be
                  down, and becomes the standby when it starts again
  rabbitmqctl ARGUMENTS...
                  run rabbitmqctl against the private broker
  eval ERLANG     evaluate an expression in the broker, like 'rabbitmqctl eval',
                  but in milliseconds: rabbitmqctl needs a second of CPU time
                  to start
  at NAME COMMAND...
                  run one of these commands for one member of a cluster, such
                  as: at broker-2 eval ...
  install         only install the servers that are missing

NAME is broker or postgres. In a cluster these are the first RabbitMQ node and
the first PostgreSQL; the others are broker-2, broker-3 and postgres-2.
All files are in .local/ in the repository's root, or in
$WEBHOOK_NOTIFIER_LOCAL_DIR: the logs in log/, the certificates of the CA, the
servers and a client in tls/.
With SERVICES_SYNC=no, servers are started without fsync: their data survive a
crash of the server, but not of the machine.
BROKER_ROOT and POSTGRES_ROOT may name the root directories of other systems,
to run the servers of these; scripts/test-versions.sh creates such directories.
USAGE
}

say() { printf 'services: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# shellcheck source=scripts/services/processes.sh
source "$REPO/scripts/services/processes.sh"
# shellcheck source=scripts/services/tls.sh
source "$REPO/scripts/services/tls.sh"
# shellcheck source=scripts/services/rabbitmq.sh
source "$REPO/scripts/services/rabbitmq.sh"
# shellcheck source=scripts/services/postgres.sh
source "$REPO/scripts/services/postgres.sh"
# shellcheck source=scripts/services/cluster.sh
source "$REPO/scripts/services/cluster.sh"

# ---------------------------------------------------------------- state

load_state() {
    if [[ -f $STATE ]]; then
        BROKER_ROOT='' POSTGRES_ROOT=''
        # shellcheck source=/dev/null
        source "$STATE"
    fi
    # Only the version that created the data can use them.
    if [[ -n $WANTED_BROKER_ROOT && $WANTED_BROKER_ROOT != "$BROKER_ROOT" ||
        -n $WANTED_POSTGRES_ROOT && $WANTED_POSTGRES_ROOT != "$POSTGRES_ROOT" ]]; then
        die "the servers in $LOCAL are not those of BROKER_ROOT and POSTGRES_ROOT:" \
            "unset these, or run 'scripts/services.sh down --purge' first"
    fi
}

save_state() {
    local var
    for var in BROKER_PORT BROKER_DIST_PORT EPMD_PORT BROKER_PASSWORD POSTGRES_PORT POSTGRES_PASSWORD \
        TLS BROKER_TLS_PORT NODES PEER BROKER_ROOT POSTGRES_ROOT; do
        printf '%s=%q\n' "$var" "${!var}"
    done >"$STATE.new"
    mv -- "$STATE.new" "$STATE"
}

prepare_local_dir() {
    mkdir -p -- "$LOCAL" 2>/dev/null || true
    [[ -w $LOCAL ]] ||
        die "cannot write to $LOCAL as $(id -un): make it writable or set WEBHOOK_NOTIFIER_LOCAL_DIR"
    mkdir -p -- "$LOGS"
}

# Held until the script ends; the servers do not inherit it (see detach).
take_lock() {
    local fd
    exec {fd}>"$LOCAL/lock"
    flock -w "$LOCK_TIMEOUT" "$fd" ||
        die "another services.sh has held $LOCAL/lock for over $LOCK_TIMEOUT s: end it and try again"
}

random_password() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the kernel's usual range for outgoing connections: one of these could
# take the saved port of a server that is down.
pick_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        case " $BROKER_PORT $BROKER_TLS_PORT $BROKER_DIST_PORT $EPMD_PORT $POSTGRES_PORT " in
            *" $port "*) continue ;;
        esac
        port_is_free "$port" && break
    done
    printf '%s' "$port"
}

# Only for a server that is down: its own listener would be taken for another
# program's.
assign_port() {
    local -n port_ref=$1
    local old=$port_ref
    if [[ -n $old ]] && port_is_free "$old"; then return; fi
    port_ref=$(pick_port)
    [[ -z $old ]] || say "another program uses port $old: $1 is now $port_ref"
}

# ---------------------------------------------------------------- installation

missing_packages() {
    find_rabbitmq >/dev/null || echo rabbitmq-server
    find_postgres_bin >/dev/null || echo postgresql
    [[ -z $TLS ]] || command -v openssl >/dev/null || echo openssl
    [[ $SYNC != no ]] || find_eatmydata >/dev/null || echo libeatmydata1
}

# Nothing can be installed into another system's root directory.
check_roots() {
    find_rabbitmq >/dev/null || die "there is no RabbitMQ in BROKER_ROOT=$BROKER_ROOT"
    find_postgres_bin >/dev/null || die "there is no PostgreSQL in POSTGRES_ROOT=$POSTGRES_ROOT"
    [[ $SYNC != no ]] || find_eatmydata >/dev/null || die "there is no libeatmydata in BROKER_ROOT=$BROKER_ROOT"
}

install_missing() {
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    [[ -z $BROKER_ROOT$POSTGRES_ROOT ]] || check_roots
    "$REPO/scripts/install-tools.sh" "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} == 0)) || die "installed, but still not found: ${missing[*]}"
}

# ---------------------------------------------------------------- commands

start_services() {
    local name
    load_state
    install_missing
    prepare_local_dir
    take_lock
    load_state
    [[ -z $TLS ]] || make_certificates
    for name in "$@"; do launch "$name"; done
    for name in "$@"; do await_start "$name"; done
}

# up [--tls|--cluster]
up() {
    case ${1-} in
        '')
            if is_cluster && [[ -d $LOCAL/broker-2 ]]; then
                up_cluster
                return
            fi
            ;;
        --cluster)
            up_cluster
            return
            ;;
        --tls)
            load_state
            if [[ -z $TLS ]]; then
                # Running servers must be restarted. (In a subshell, so that its lock ends with it.)
                (stop_services "${SERVICES[@]}")
                prepare_local_dir
                TLS=yes
                save_state
            fi
            ;;
        *) die "up takes only --tls or --cluster, not '$1'" ;;
    esac
    start_services "${SERVICES[@]}"
}

stop_services() {
    local name
    # Processes can outlive a deleted .local, but then there is nothing to lock.
    [[ ! -d $LOCAL ]] || take_lock
    for name in "$@"; do signal_stop "$name"; done
    for name in "$@"; do await_stop "$name"; done
}

# RabbitMQ (3.10 and 4.0 at least) loses a quorum queue that was declared within
# about a second before a SIGKILL: its name reaches the disk late, and after the
# restart the queue has no leader (rabbitmq/rabbitmq-server#15725). Tests that
# kill the broker make it write the names first.
kill_service() {
    [[ ! -d $LOCAL ]] || take_lock
    is_running "$1" || say "$1 was not running"
    kill_all "$1"
}

# signal_all SIGNAL NAME
signal_all() {
    local pids
    pids=$("$2_pids")
    [[ -n $pids ]] || die "$2 is not running: 'scripts/services.sh start $2' starts it"
    # shellcheck disable=SC2086  # one word per pid
    kill -s "$1" $pids
}

# Deletes only what this script created: other tools may use .local, too.
purge() {
    local name
    for name in "${MEMBERS[@]}"; do
        [[ ! -d $LOCAL/$name ]] || member "$name" down --purge
    done
    rm -rf -- "$BROKER_HOME" "$PG_HOME" "$TLS_HOME" \
        "$LOGS"/{broker.log,postgres.log,epmd.log,openssl.log,erl_crash.dump} "$STATE" "$STATE.new" "$LOCAL/lock"
    rmdir --ignore-fail-on-non-empty -- "$LOGS" "$LOCAL" 2>/dev/null || true
}

down() {
    case ${1-} in
        '' | --purge)
            if is_cluster && [[ -d $LOCAL/broker-2 ]]; then
                down_cluster
            else
                stop_services "${SERVICES[@]}"
            fi
            ;;
        *) die "down takes only --purge, not '$1'" ;;
    esac
    [[ -z ${1-} ]] || purge
}

status() {
    local name pid all=0 names=("$@")
    load_state
    (($#)) || names=("${SERVICES[@]}")
    for name in "${names[@]}"; do
        pid=$(main_pid "$name")
        if [[ -n $pid ]]; then
            echo "$name: running (pid $pid, port $("${name}_port"))"
        else
            echo "$name: stopped"
            all=1
        fi
    done
    if [[ $# == 0 && -d $LOCAL/broker-2 ]]; then
        for name in "${MEMBERS[@]}"; do
            member "$name" status "${name%-*}" | sed "s/^[a-z]*:/$name:/" || all=1
        done
    fi
    return "$all"
}

print_env() {
    load_state
    [[ -n $BROKER_PORT && -n $POSTGRES_PORT ]] || die "no servers yet: run 'scripts/services.sh up' first"
    local amqp=$BROKER_USER:$BROKER_PASSWORD@127.0.0.1
    if [[ -d $LOCAL/broker-2 ]]; then
        print_cluster_env "$amqp"
        return
    fi
    local database=postgres://$PG_USER:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT/postgres
    case ${1-} in
        '')
            echo "AMQP_URL=amqp://$amqp:$BROKER_PORT/%2f"
            echo "DATABASE_URL=$database"
            ;;
        --tls)
            [[ -n $TLS ]] || die "TLS is not enabled yet: run 'scripts/services.sh up --tls' first"
            echo "AMQP_URL=amqps://$amqp:$BROKER_TLS_PORT/%2f"
            echo "DATABASE_URL=$database?sslmode=verify-full"
            echo "TLS_CA_FILE=$TLS_HOME/ca.pem"
            ;;
        *) die "env takes only --tls, not '$1'" ;;
    esac
}

check_name() {
    local name known=" broker postgres "
    (($#)) || die "name the server: broker or postgres"
    [[ ! -d $LOCAL/broker-2 ]] || known+="${MEMBERS[*]} "
    for name in "$@"; do
        [[ $known == *" $name "* ]] || die "there is no server '$name' here, only:${known% }"
    done
}

main() {
    # No other user may read the passwords and data.
    umask 077
    local verb=${1-}
    shift || true
    case $verb in
        start | stop | kill | freeze | thaw | isolate | rejoin) check_name "${1-}" ;;
        at)
            check_name "${1-}"
            at "$@"
            return
            ;;
    esac
    # Members with a directory of their own.
    case $verb:${1-} in
        start:broker-* | stop:broker-* | kill:broker-* | freeze:broker-* | thaw:broker-* | *:postgres-2)
            member "$1" "$verb" "${1%-*}"
            return
            ;;
    esac
    case $verb in
        up) up "$@" ;;
        down) down "$@" ;;
        status) status "$@" ;;
        env) print_env "$@" ;;
        start) start_services "$1" ;;
        stop) stop_services "$1" ;;
        kill) kill_service "$1" ;;
        freeze) signal_all STOP "$1" ;;
        thaw) signal_all CONT "$1" ;;
        isolate | rejoin) isolate_or_rejoin "$verb" "$1" ;;
        promote) promote ;;
        # Internal: for the standby's directory, after `promote` has checked that the primary is down.
        promote-here) promote_here ;;
        rabbitmqctl) run_rabbitmqctl "$@" ;;
        eval) eval_in_broker "$1" ;;
        install) install_missing ;;
        help | -h | --help) usage ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
}

main "$@"
