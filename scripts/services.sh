#!/usr/bin/env bash
#
# A private RabbitMQ and a private PostgreSQL for development, demo and tests, or clusters of them.
# Run `scripts/services.sh help` for the commands.
#
# Both servers listen on loopback only, on free ports chosen once, and keep all
# they have under .local/, so they share nothing with servers that the system
# or another checkout runs. A server's processes are found by what they carry
# (the broker's by a variable in their environment, PostgreSQL's by their
# working directory), never by a remembered pid alone: after a crash or a
# reboot that number may belong to a stranger.

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

# Remembered in $STATE, so that the URLs stay the same over restarts.
BROKER_PORT='' BROKER_DIST_PORT='' EPMD_PORT='' BROKER_PASSWORD=''
POSTGRES_PORT='' POSTGRES_PASSWORD=''
# Whether the servers also speak TLS ('yes' or nothing), and where RabbitMQ does;
# PostgreSQL has one port for both.
TLS='' BROKER_TLS_PORT=''
# Of a cluster: the names of its RabbitMQ nodes, and the directory of the other PostgreSQL.
NODES='' PEER=''
# Where the files of another system are whose RabbitMQ, or PostgreSQL, is run; nothing: the machine's own.
readonly WANTED_BROKER_ROOT=${BROKER_ROOT-} WANTED_POSTGRES_ROOT=${POSTGRES_ROOT-}
BROKER_ROOT=$WANTED_BROKER_ROOT POSTGRES_ROOT=$WANTED_POSTGRES_ROOT

usage() {
    cat <<'USAGE'
Usage: scripts/services.sh COMMAND

  up [--tls|--cluster]
                  start both servers and wait until they answer (installs
                  missing ones when run as root); --tls makes a CA, and has
                  both speak TLS too, now and whenever they start again;
                  --cluster makes it three RabbitMQ nodes, and a PostgreSQL
                  primary with a standby that it streams to
  down [--purge]  stop all; --purge also deletes their data
  status          show what runs; exit 0 only if all do
  env [--tls]     print AMQP_URL and DATABASE_URL; with --tls those for TLS,
                  and TLS_CA_FILE
  start NAME      start one server with the data it had
  stop NAME       stop one server in good order
  kill NAME       end one server with SIGKILL, as a crash would
  freeze NAME     stop one server's processes where they are (SIGSTOP);
  thaw NAME       let them go on
  isolate NAME    cut a node of RabbitMQ off from the others of its cluster;
  rejoin NAME     let them connect again
  promote         make the standby of PostgreSQL the primary, once the primary
                  is down; that one becomes the standby when it starts again
  rabbitmqctl ARGUMENTS...
                  run RabbitMQ's own tool against the private broker
  eval ERLANG     evaluate an expression in it, as 'rabbitmqctl eval' does, in
                  milliseconds: the tool takes a second of a processor to start
  at NAME COMMAND...
                  one of these for a member of a cluster: at broker-2 eval ...
  install         only make sure that both servers are installed

NAME is broker or postgres; of a cluster, these are its first node and its
first PostgreSQL, and broker-2, broker-3 and postgres-2 the others. Everything
is kept in .local/ at the repository's root, or in $WEBHOOK_NOTIFIER_LOCAL_DIR.
Logs are in .local/log/, the CA's and the servers' certificates, and one for a
client, in .local/tls/.
With SERVICES_SYNC=no servers that start don't wait for the disk: what they
wrote outlives them all the same, but not a crash of the machine.
BROKER_ROOT and POSTGRES_ROOT may name directories that hold another system's
files, whose servers are run then; scripts/test-versions.sh makes some.
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
    # The data are for the version that made them.
    if [[ -n $WANTED_BROKER_ROOT && $WANTED_BROKER_ROOT != "$BROKER_ROOT" ||
        -n $WANTED_POSTGRES_ROOT && $WANTED_POSTGRES_ROOT != "$POSTGRES_ROOT" ]]; then
        die "the servers in $LOCAL are not those of BROKER_ROOT and POSTGRES_ROOT:" \
            "unset these, or 'scripts/services.sh down --purge' first"
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
        die "another services.sh has worked on $LOCAL for over $LOCK_TIMEOUT s: end it and try again"
}

random_password() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the kernel's usual range for outgoing connections, which could take a
# remembered port while its server is down.
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

# Only for a server that is down: its own listener would count as a stranger.
assign_port() {
    local -n port_ref=$1
    local old=$port_ref
    if [[ -n $old ]] && port_is_free "$old"; then return; fi
    port_ref=$(pick_port)
    [[ -z $old ]] || say "another program took port $old: $1 is now $port_ref"
}

# ---------------------------------------------------------------- installation

missing_packages() {
    find_rabbitmq >/dev/null || echo rabbitmq-server
    find_postgres_bin >/dev/null || echo postgresql
    [[ -z $TLS ]] || command -v openssl >/dev/null || echo openssl
    [[ $SYNC != no ]] || find_eatmydata >/dev/null || echo libeatmydata1
}

# Nothing is installed into another system.
find_roots() {
    find_rabbitmq >/dev/null || die "there is no RabbitMQ in BROKER_ROOT=$BROKER_ROOT"
    find_postgres_bin >/dev/null || die "there is no PostgreSQL in POSTGRES_ROOT=$POSTGRES_ROOT"
    [[ $SYNC != no ]] || find_eatmydata >/dev/null || die "there is no libeatmydata in BROKER_ROOT=$BROKER_ROOT"
}

# Servers of our own are run here, so none of the packages' is started.
install_missing() {
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    [[ -z $BROKER_ROOT$POSTGRES_ROOT ]] || find_roots
    "$REPO/scripts/install-tools.sh" "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} == 0)) || die "still missing after their installation: ${missing[*]}"
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
                # What runs has to begin again. (A subshell, for the lock to end with it.)
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
# kill the broker have it write the names first.
kill_service() {
    [[ ! -d $LOCAL ]] || take_lock
    is_running "$1" || say "$1 was not running"
    kill_all "$1"
}

# As if a machine stood still; and what was frozen goes on.
signal_all() {
    local pids
    pids=$("$2_pids")
    [[ -n $pids ]] || die "$2 does not run"
    # shellcheck disable=SC2086  # one word per pid
    kill -s "$1" $pids
}

# Only what this script made: .local may be shared with other tools.
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
            [[ -n $TLS ]] || die "no TLS yet: run 'scripts/services.sh up --tls' first"
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
    # Passwords and data are nobody else's to read.
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
    # Another directory's.
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
        # Of one directory; promote has made sure that it may be.
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
