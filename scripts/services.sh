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
readonly BROKER_HOME=$LOCAL/rabbitmq
readonly PG_HOME=$LOCAL/postgres
readonly PG_DATA=$PG_HOME/data
readonly TLS_HOME=$LOCAL/tls

# The further servers of a cluster. Each has a directory of its own in $LOCAL, of the same layout, and is
# looked after by this script, called for that directory.
readonly MEMBERS=(broker-2 broker-3 postgres-2)
# How soon the nodes of a cluster notice that one is frozen or cut off, in seconds.
readonly NET_TICK_TIME=5

readonly SYNC=${SERVICES_SYNC:-yes}

readonly BROKER_USER=webhook-notifier
readonly PG_USER=postgres

readonly START_TIMEOUT=60
readonly STOP_TIMEOUT=20
# How long a new server may take to show up as a process.
readonly SPAWN_TIMEOUT=5
readonly LOCK_TIMEOUT=180
readonly MAX_LOG_BYTES=$((20 * 1024 * 1024))
readonly MAX_OPEN_FILES=65536

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
first PostgreSQL, and broker-2, broker-3 and postgres-2 the others. Everything is kept in .local/ at the repository's
root, or in $WEBHOOK_NOTIFIER_LOCAL_DIR. Logs are in .local/log/,
the CA's and the servers' certificates, and one for a client, in .local/tls/.
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

# ---------------------------------------------------------------- processes

# Lets a server outlive the terminal, Ctrl-C and the pipes of whoever called
# us: a `make` or $(...) waits until every copy of its pipe is closed.
detach() {
    local log=$1 fd
    if [[ -f $log ]] && (($(stat -c %s -- "$log") > MAX_LOG_BYTES)); then : >"$log"; fi
    exec </dev/null >>"$log" 2>&1
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        # 255 is where bash reads this script from; it is closed on exec.
        if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
    done
    cd /
}

# Prints the pid of a server's main process, or nothing if it does not run.
main_pid() {
    local name=$1 pid_file pid=''
    pid_file=$("${name}_pid_file")
    { read -r pid <"$pid_file"; } 2>/dev/null || true
    if [[ -n $pid ]] && grep -qx -- "$pid" <<<"$("${name}_pids")"; then printf '%s' "$pid"; fi
}

is_running() { [[ -n $(main_pid "$1") ]]; }

# SIGKILL to every process of a server, again until none is left: one that is
# killed may just have forked.
kill_all() {
    local name=$1 pids deadline=$((SECONDS + STOP_TIMEOUT))
    while pids=$("${name}_pids") && [[ -n $pids ]]; do
        ((SECONDS < deadline)) || die "$name: processes survive SIGKILL: ${pids//$'\n'/ }"
        # shellcheck disable=SC2086  # one word per pid
        kill -KILL $pids 2>/dev/null || true
        sleep 0.05
    done
}

# By name, what signal_stop asked to stop. The pid files can't tell whether it has: RabbitMQ removes
# its own when it begins to stop.
declare -A stopping=()

signal_stop() {
    local name=$1 pid
    pid=$(main_pid "$name")
    stopping[$name]=$pid
    [[ -z $pid ]] || kill -s "$("${name}_stop_signal")" "$pid" 2>/dev/null || true
}

# After signal_stop; also ends what stays behind, such as the broker's epmd.
await_stop() {
    local name=$1 deadline=$((SECONDS + STOP_TIMEOUT))
    while [[ -n ${stopping[$name]} ]] && grep -qx -- "${stopping[$name]}" <<<"$("${name}_pids")"; do
        if ((SECONDS >= deadline)); then
            say "$name did not stop within $STOP_TIMEOUT s: killing it"
            break
        fi
        sleep 0.05
    done
    kill_all "$name"
}

launch() {
    local name=$1
    if is_running "$name"; then return; fi
    kill_all "$name"
    "${name}_prepare"
    "${name}_exec"
}

await_start() {
    local name=$1 began=$SECONDS
    until is_running "$name" && "${name}_answers"; do
        if ((SECONDS - began >= SPAWN_TIMEOUT)) && [[ -z $("${name}_pids") ]]; then
            start_failed "$name" "it exited while starting"
        fi
        if ((SECONDS - began >= START_TIMEOUT)); then
            kill_all "$name"
            start_failed "$name" "it did not answer within $START_TIMEOUT s"
        fi
        sleep 0.05
    done
}

start_failed() {
    local name=$1 log=$LOGS/$1.log
    say "$name did not start: $2. The last lines of $log:"
    tail -n 20 -- "$log" >&2 || true
    die "remedy what the log names; 'scripts/services.sh down --purge' starts afresh without the data"
}

# ---------------------------------------------------------------- other systems

# Sets `inside`: what runs a program of the system whose files are in a directory, with our files where they
# are, or nothing for the machine's own. Mounts and the new root are the process's, and go with it.
enter() {
    inside=()
    [[ -n $1 ]] || return 0
    # shellcheck disable=SC2016  # for the shell inside
    local mounts='set -e; root=$1 ours=$2; shift 2
        for dir in /proc /dev "$ours"; do mkdir -p "$root$dir"; mount --rbind "$dir" "$root$dir"; done'
    if ((EUID == 0)); then
        inside=(unshare --mount sh -c "$mounts; "'exec chroot "$root" "$@"' sh "$1" "$LOCAL")
    else
        # Root in a user namespace may do that, and becomes the user again in another one.
        # shellcheck disable=SC2016
        inside=(unshare --user --map-root-user --mount sh -c
            "$mounts; exec unshare --user --map-user=$EUID --map-group=$(id -g)"' --root="$root" "$@"'
            sh "$1" "$LOCAL")
    fi
}

# ---------------------------------------------------------------- TLS

# A CA of our own, what it signed for the servers and for a client. Once: who
# was given the CA's certificate goes on believing it.
make_certificates() {
    [[ ! -f $TLS_HOME/done ]] || return 0
    rm -rf -- "$TLS_HOME"
    mkdir -p -- "$TLS_HOME"
    run_openssl req -x509 -days 3650 -subj '/CN=webhook-notifier private CA' \
        -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
        -keyout "$TLS_HOME/ca.key" -out "$TLS_HOME/ca.pem"
    make_certificate server serverAuth 'subjectAltName=DNS:localhost,IP:127.0.0.1'
    make_certificate client clientAuth 'subjectAltName=DNS:client'
    touch -- "$TLS_HOME/done"
}

# make_certificate NAME USAGE EXTENSION
make_certificate() {
    local file=$TLS_HOME/$1
    run_openssl req -new -subj "/CN=webhook-notifier $1" \
        -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -keyout "$file.key" -out "$file.csr"
    printf '%s\n' basicConstraints=CA:FALSE "extendedKeyUsage=$2" "$3" >"$file.extensions"
    run_openssl x509 -req -days 3650 -in "$file.csr" -extfile "$file.extensions" \
        -CA "$TLS_HOME/ca.pem" -CAkey "$TLS_HOME/ca.key" -CAcreateserial -out "$file.pem"
    rm -- "$file.csr" "$file.extensions"
}

run_openssl() {
    local log=$LOGS/openssl.log
    openssl "$@" >"$log" 2>&1 || die "openssl $1 failed: $(tail -n 3 -- "$log")"
}

# ---------------------------------------------------------------- RabbitMQ

# The distribution's wrapper in /usr/sbin insists on root and switches to the
# user rabbitmq; the script that it calls does neither.
find_rabbitmq() {
    local bin=/usr/lib/rabbitmq/bin/rabbitmq-server
    if [[ -x $BROKER_ROOT$bin ]]; then
        printf '%s' "$bin"
    else
        [[ -z $BROKER_ROOT ]] && command -v rabbitmq-server
    fi
}

broker_mark() { printf 'WEBHOOK_NOTIFIER_BROKER_OF=%s' "$LOCAL"; }
broker_pids() { grep -lzxF -- "$(broker_mark)" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true; }
broker_pid_file() { printf '%s' "$BROKER_HOME/broker.pid"; }
broker_stop_signal() { printf TERM; }
broker_port() { printf '%s' "$BROKER_PORT"; }

broker_prepare() {
    mkdir -p -- "$BROKER_HOME"
    rm -f -- "$(broker_pid_file)"
    assign_port BROKER_PORT
    assign_port BROKER_DIST_PORT
    # The nodes of a cluster share one, which runs already.
    [[ -n $NODES ]] || assign_port EPMD_PORT
    [[ -z $TLS ]] || assign_port BROKER_TLS_PORT
    : "${BROKER_PASSWORD:=$(random_password)}"
    save_state
    echo '[].' >"$BROKER_HOME/enabled_plugins"
    # After a crash an expired message may be moved to a queue that is not up yet, and is moved again
    # once that was not confirmed for this long: three minutes, which no test has time for.
    echo '[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].' \
        >"$BROKER_HOME/advanced.config"
    # A small write-ahead log bounds the memory that quorum queues take and the
    # time that recovery needs.
    cat >"$BROKER_HOME/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$BROKER_PORT
default_user = $BROKER_USER
default_pass = $BROKER_PASSWORD
log.console.level = info
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 33554432
CONF
    # A client's certificate is checked where there is one.
    [[ -z $TLS ]] || cat >>"$BROKER_HOME/rabbitmq.conf" <<CONF
listeners.ssl.1 = 127.0.0.1:$BROKER_TLS_PORT
ssl_options.cacertfile = $TLS_HOME/ca.pem
ssl_options.certfile = $TLS_HOME/server.pem
ssl_options.keyfile = $TLS_HOME/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
CONF
    [[ -z $NODES ]] || cluster_conf >>"$BROKER_HOME/rabbitmq.conf"
    # No look-up may leave the machine or wait for a name server.
    cat >"$BROKER_HOME/inetrc" <<'INETRC'
{lookup, [file]}.
{host, {127,0,0,1}, ["localhost"]}.
INETRC
}

node_of() { printf 'wn-%s@localhost' "$(cksum <<<"$1" | cut -d' ' -f1)"; }
broker_node() { node_of "$LOCAL"; }

# Sets `vars`: what the broker and its tool both need to find each other. The
# environment starts empty: RABBITMQ_* and ERL_* variables of the caller, like
# the files in /etc/rabbitmq, are meant for another broker.
broker_vars() {
    vars=(
        PATH="$PATH"
        HOME="$BROKER_HOME"
        LC_ALL=C.UTF-8
        RABBITMQ_NODENAME="$(broker_node)"
        RABBITMQ_CONFIG_FILE="$BROKER_HOME/rabbitmq.conf"
        RABBITMQ_CONF_ENV_FILE="$BROKER_HOME/none"
        RABBITMQ_ADVANCED_CONFIG_FILE="$BROKER_HOME/advanced.config"
        ERL_EPMD_PORT="$EPMD_PORT"
        ERL_EPMD_ADDRESS=127.0.0.1
        ERL_INETRC="$BROKER_HOME/inetrc"
        # Here and not in the server's own arguments, so that it also holds for
        # the short-lived VM by which RabbitMQ starts epmd.
        ERL_ZFLAGS="-kernel inet_dist_use_interface {127,0,0,1}"
    )
}

broker_exec() (
    rabbitmq=$(find_rabbitmq)
    broker_vars
    detach "$LOGS/broker.log"
    # The VM sizes tables by this limit, so neither tiny nor unlimited will do.
    ulimit -n "$MAX_OPEN_FILES" 2>/dev/null || ulimit -S -n "$(ulimit -H -n)"
    vars+=(
        "$(broker_mark)"
        RABBITMQ_ENABLED_PLUGINS_FILE="$BROKER_HOME/enabled_plugins"
        RABBITMQ_MNESIA_BASE="$BROKER_HOME/mnesia"
        RABBITMQ_SCHEMA_DIR="$BROKER_HOME/schema"
        RABBITMQ_GENERATED_CONFIG_DIR="$BROKER_HOME/config"
        RABBITMQ_LOG_BASE="$BROKER_HOME/log"
        RABBITMQ_LOGS=-
        RABBITMQ_PID_FILE="$(broker_pid_file)"
        RABBITMQ_DIST_PORT="$BROKER_DIST_PORT"
        # Binding schedulers to cores, the default, hurts when cores are shared.
        RABBITMQ_SCHEDULER_BIND_TYPE=u
        ERL_CRASH_DUMP="$LOGS/erl_crash.dump"
    )
    [[ -z $NODES ]] || vars+=(RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel net_ticktime $NET_TICK_TIME")
    [[ $SYNC != no ]] || vars+=(LD_PRELOAD="$(find_eatmydata)")
    enter "$BROKER_ROOT"
    exec "${inside[@]}" env -i "${vars[@]}" setsid --fork "$rabbitmq"
)

# Not marked as the broker's: a kill of the broker is not for the tool.
run_rabbitmqctl() (
    load_state
    is_running broker || die "the broker does not run: 'scripts/services.sh start broker' starts it"
    rabbitmq=$(find_rabbitmq)
    broker_vars
    enter "$BROKER_ROOT"
    exec "${inside[@]}" env -i "${vars[@]}" "${rabbitmq%/*}/rabbitmqctl" "$@"
)

# The cookie is read from HOME. Each call has a name of its own: several may be under way.
eval_in_broker() (
    load_state
    is_running broker || die "the broker does not run: 'scripts/services.sh start broker' starts it"
    broker_vars
    local result
    enter "$BROKER_ROOT"
    result=$("${inside[@]}" env -i "${vars[@]}" erl_call -h "eval-$BASHPID" -sname "$(broker_node)" -e <<<"$1" 2>&1) || die "$result"
    [[ $result == '{ok, '* ]] || die "$result"
    result=${result#'{ok, '}
    printf '%s\n' "${result%\}}"
)

# RabbitMQ opens its listeners at the end of its boot, so the first byte of
# Connection.Start, which a method frame begins with, means that it is ready.
broker_answers() (
    exec 3<>"/dev/tcp/127.0.0.1/$BROKER_PORT" || exit 1
    printf 'AMQP\0\0\11\1' >&3
    IFS= read -r -N 1 -t 5 -u 3 type && [[ $type == $'\1' ]]
) 2>/dev/null

# ---------------------------------------------------------------- PostgreSQL

# The user who runs PostgreSQL may not be able to reach $PG_HOME by its path
# (say, in a clone under /root or in a `mktemp -d`). A descriptor that is
# opened before the change of user leads straight to the directory.
readonly PG_FD_PATH=/proc/self/fd/3

# The version that made the data directory, else the newest one installed.
find_postgres_bin() {
    local dir version='' root=$POSTGRES_ROOT
    { read -r version <"$PG_DATA/PG_VERSION"; } 2>/dev/null || true
    dir=$root/usr/lib/postgresql/$version/bin
    if [[ -z $version || ! -x $dir/initdb ]]; then
        dir=$(printf '%s\n' "$root"/usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    fi
    if [[ -z $root && ! -x $dir/initdb ]]; then
        dir=$(command -v initdb) && dir=$(dirname -- "$dir")
    fi
    [[ -x $dir/postgres && -x $dir/pg_isready ]] && printf '%s' "${dir#"$root"}"
}

postgres_pids() {
    local proc
    for proc in /proc/[0-9]*; do
        if [[ $proc/cwd -ef $PG_DATA ]] && grep -qx postgres "$proc/comm" 2>/dev/null; then
            echo "${proc##*/}"
        fi
    done
}
postgres_pid_file() { printf '%s' "$PG_DATA/postmaster.pid"; }
postgres_stop_signal() { printf INT; }
postgres_port() { printf '%s' "$POSTGRES_PORT"; }

# PostgreSQL refuses to run as root: whoever owns the data runs it then, or the
# package's user for new data. Prints UID:GID.
postgres_owner() {
    if ((EUID != 0)); then
        printf '%s' "$EUID:$(id -g)"
    elif [[ -d $PG_DATA ]]; then
        stat -c %u:%g -- "$PG_DATA"
    else
        getent passwd postgres nobody | head -n 1 | cut -d: -f3,4
    fi
}

postgres_prepare() {
    assign_port POSTGRES_PORT
    : "${POSTGRES_PASSWORD:=$(random_password)}"
    save_state
    # None of our processes is left, so a lock file that is still here names a
    # dead postmaster; PostgreSQL would trust it if its pid is in use again.
    rm -f -- "$(postgres_pid_file)"
    if peer_is_primary && ! is_standby "$LOCAL"; then
        copy_peer
    elif [[ ! -d $PG_DATA ]]; then
        create_data
    fi
    if [[ -n $TLS ]]; then
        # PostgreSQL wants its key to be its own and nobody else's.
        cp -- "$TLS_HOME"/{ca.pem,server.pem,server.key} "$PG_DATA/"
        if ((EUID == 0)); then chown -- "$(postgres_owner)" "$PG_DATA"/{ca.pem,server.pem,server.key}; fi
    fi
}

# Under another name until complete: an interrupted initdb must not look like
# a data directory.
create_data() {
    local owner
    owner=$(postgres_owner)
    make_new_data "$owner"
    echo "$POSTGRES_PASSWORD" >"$PG_HOME/password"
    if ((EUID == 0)); then chown "$owner" "$PG_HOME/password"; fi
    run_postgres "$owner" initdb -D "$PG_FD_PATH/new" --username="$PG_USER" \
        --pwfile="$PG_FD_PATH/password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 || start_failed postgres "initdb failed"
    rm -- "$PG_HOME/password"
    mv -- "$PG_HOME/new" "$PG_DATA"
}

make_new_data() {
    rm -rf -- "$PG_HOME/new"
    mkdir -p -- "$PG_HOME/new"
    if ((EUID == 0)); then chown -R "$1" "$PG_HOME"; fi
}

is_standby() { [[ -f $1/postgres/data/standby.signal ]]; }
peer_is_primary() {
    [[ -n $PEER ]] && ! is_standby "$PEER" &&
        WEBHOOK_NOTIFIER_LOCAL_DIR=$PEER "$REPO/scripts/services.sh" status postgres >/dev/null
}

# Our data begins as a copy of the primary's, whose standby this becomes. What we had is older, or was
# written by a primary that another one has replaced.
copy_peer() {
    local owner port
    owner=$(postgres_owner)
    port=$(sed -n 's/^POSTGRES_PORT=//p' "$PEER/services.env")
    make_new_data "$owner"
    run_postgres "$owner" pg_basebackup -D "$PG_FD_PATH/new" --write-recovery-conf --wal-method=stream \
        --checkpoint=fast --no-sync -h 127.0.0.1 -p "$port" -U "$PG_USER" ||
        start_failed postgres "no copy of the primary could be made"
    rm -rf -- "$PG_DATA"
    mv -- "$PG_HOME/new" "$PG_DATA"
}

postgres_exec() {
    local options=()
    [[ -z $TLS ]] ||
        options=(-c ssl=on -c ssl_ca_file=ca.pem -c ssl_cert_file=server.pem -c ssl_key_file=server.key)
    [[ $SYNC != no ]] || options+=(-c fsync=off)
    run_postgres "$(postgres_owner)" postgres -D "$PG_FD_PATH/data" \
        -c listen_addresses=127.0.0.1 -c port="$POSTGRES_PORT" \
        -c unix_socket_directories= -c max_connections=300 \
        -c logging_collector=off -c log_destination=stderr "${options[@]}"
}

# run_postgres UID:GID PROGRAM ARGS...: the server itself goes to the background.
run_postgres() (
    owner=$1 program=$2
    shift 2
    argv=("$(find_postgres_bin)/$program" "$@")
    if ((EUID == 0)); then
        argv=(setpriv --reuid="${owner%:*}" --regid="${owner#*:}" --clear-groups "${argv[@]}")
    fi
    if [[ $program == postgres ]]; then argv=(setsid --fork "${argv[@]}"); fi
    detach "$LOGS/postgres.log"
    exec 3<"$PG_HOME"
    enter "$POSTGRES_ROOT"
    exec "${inside[@]}" env -i PATH="$PATH" LC_ALL=C.UTF-8 PGPASSWORD="$POSTGRES_PASSWORD" "${argv[@]}"
)

postgres_answers() {
    local inside
    enter "$POSTGRES_ROOT"
    "${inside[@]}" "$(find_postgres_bin)/pg_isready" -q -t 2 -h 127.0.0.1 -p "$POSTGRES_PORT"
}

# ---------------------------------------------------------------- clusters

# member NAME COMMAND...: of one of its members
member() {
    local name=$1
    shift
    WEBHOOK_NOTIFIER_LOCAL_DIR=$LOCAL/$name "$REPO/scripts/services.sh" "$@"
}

is_cluster() {
    load_state
    [[ -n $NODES ]]
}

# What stands in the configuration of each node.
cluster_conf() {
    local number=0 node
    echo 'cluster_formation.peer_discovery_backend = classic_config'
    for node in $NODES; do
        number=$((number + 1))
        echo "cluster_formation.classic_config.nodes.$number = $node"
    done
    # The usual choice for quorum queues: who sees no majority serves nobody.
    echo 'cluster_partition_handling = pause_minority'
}

# By what no broker's environment has: a kill of a node must not take the others' epmd.
epmd_mark() { printf 'WEBHOOK_NOTIFIER_EPMD_OF=%s' "$LOCAL"; }
epmd_pids() { grep -lzxF -- "$(epmd_mark)" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true; }

start_epmd() (
    [[ -z $(epmd_pids) ]] || exit 0
    detach "$LOGS/epmd.log"
    enter "$BROKER_ROOT"
    exec "${inside[@]}" env -i PATH="$PATH" "$(epmd_mark)" epmd -daemon -address 127.0.0.1 -port "$EPMD_PORT"
)

# The names, passwords and the port that the members share, and what makes each one a member.
plan_cluster() {
    local name
    NODES=$(node_of "$LOCAL")
    for name in "${MEMBERS[@]}"; do
        [[ $name != broker-* ]] || NODES+=" $(node_of "$LOCAL/$name")"
    done
    PEER=$LOCAL/postgres-2
    EPMD_PORT=$(pick_port)
    BROKER_PASSWORD=$(random_password)
    POSTGRES_PASSWORD=$(random_password)
    save_state
    mkdir -p -- "$BROKER_HOME"
    random_password >"$BROKER_HOME/.erlang.cookie"
    chmod 400 -- "$BROKER_HOME/.erlang.cookie"
    for name in "${MEMBERS[@]}"; do
        mkdir -p -- "$LOCAL/$name/rabbitmq"
        [[ $name != broker-* ]] || cp -p -- "$BROKER_HOME/.erlang.cookie" "$LOCAL/$name/rabbitmq/"
        sed "s|^PEER=.*|PEER=$(printf '%q' "$LOCAL")|" "$STATE" >"$LOCAL/$name/services.env"
    done
}

up_cluster() {
    local name starting=() failed=0
    if ! is_cluster; then
        [[ ! -f $STATE ]] ||
            die "there are servers here that are none: 'scripts/services.sh down --purge' deletes them"
        prepare_local_dir
        plan_cluster
    fi
    install_missing
    start_epmd
    start_primary
    # Together: a node that starts waits for those that were the last to stop.
    for name in "${MEMBERS[@]}"; do
        member "$name" start "${name%-*}" &
        starting+=($!)
    done
    # (A subshell, for the lock to end with it.)
    (start_services broker postgres) || failed=1
    for name in "${starting[@]}"; do wait "$name" || failed=1; done
    ((failed == 0)) || die "not all of the cluster has started"
}

# Of two that are down, the one that is no standby comes first: the other copies it.
start_primary() {
    if is_standby "$LOCAL"; then member postgres-2 start postgres; else (start_services postgres); fi
}

down_cluster() {
    local name ending=()
    for name in "${MEMBERS[@]}"; do
        member "$name" down &
        ending+=($!)
    done
    (stop_services "${SERVICES[@]}")
    for name in "${ending[@]}"; do wait "$name"; done
    kill_all epmd
}

# promote: the standby becomes the primary.
promote() {
    local standby=$LOCAL primary=$LOCAL/postgres-2
    is_cluster || die "there is no standby: 'scripts/services.sh up --cluster' makes one"
    if ! is_standby "$standby"; then
        standby=$LOCAL/postgres-2 primary=$LOCAL
    fi
    # With both, each client would choose its own truth.
    ! WEBHOOK_NOTIFIER_LOCAL_DIR=$primary "$REPO/scripts/services.sh" status postgres >/dev/null ||
        die "the primary runs: stop or kill it first"
    if [[ $standby == "$LOCAL" ]]; then promote_here; else member postgres-2 promote-here; fi
}

promote_here() {
    load_state
    run_postgres "$(postgres_owner)" pg_ctl promote --wait --timeout="$START_TIMEOUT" -D "$PG_FD_PATH/data" ||
        die "the standby could not be promoted: $(tail -n 3 -- "$LOGS/postgres.log")"
}

# isolate NODE, rejoin NODE: by a cookie that the others don't have. From all at once: nodes of which two see
# a third and not each other give up more connections (OTP's prevent_overlapping_partitions).
isolate_or_rejoin() {
    local verb=$1 name=$2 other node cookie=cut calls=''
    is_cluster || die "there is no cluster: 'scripts/services.sh up --cluster' makes one"
    [[ $name == broker* ]] || die "$verb takes a node of RabbitMQ, not $name"
    [[ $verb == isolate ]] || cookie=$(<"$BROKER_HOME/.erlang.cookie")
    for node in $NODES; do
        [[ $name != broker || $node != "$(broker_node)" ]] || continue
        [[ $node != "$(node_of "$LOCAL/$name")" ]] || continue
        other="'$node'"
        calls+="erlang:set_cookie($other, list_to_atom(\"$cookie\")), "
        [[ $verb == rejoin ]] || calls+="erlang:disconnect_node($other), "
    done
    at "$name" eval "$calls ok." >/dev/null
}

# at NAME COMMAND...
at() {
    local name=$1
    shift
    case $name in
        broker | postgres) "$REPO/scripts/services.sh" "$@" ;;
        *) member "$name" "$@" ;;
    esac
}

# ---------------------------------------------------------------- installation

missing_packages() {
    find_rabbitmq >/dev/null || echo rabbitmq-server
    find_postgres_bin >/dev/null || echo postgresql
    [[ -z $TLS ]] || command -v openssl >/dev/null || echo openssl
    [[ $SYNC != no ]] || find_eatmydata >/dev/null || echo libeatmydata1
}

# A library that makes fsync and its like do nothing. RabbitMQ has no setting for it.
find_eatmydata() {
    local found
    if [[ -n $BROKER_ROOT ]]; then
        found=$(compgen -G "$BROKER_ROOT/usr/lib/*/libeatmydata.so") && printf '%s' "${found#"$BROKER_ROOT"}"
        return
    fi
    # To its end: what ldconfig could not write would be its failure.
    ldconfig -p | awk '/libeatmydata[.]so$/ { path = $NF } END { if (path) print path; else exit 1 }'
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

print_cluster_env() {
    local name port hosts=$1:$BROKER_PORT places=127.0.0.1:$POSTGRES_PORT
    for name in "${MEMBERS[@]}"; do
        port=$(sed -n "s/^${name%-*}_PORT=//Ip" "$LOCAL/$name/services.env")
        case $name in
            broker-*) hosts+=,127.0.0.1:$port ;;
            *) places+=,127.0.0.1:$port ;;
        esac
    done
    echo "AMQP_URL=amqp://$hosts/%2f"
    echo "DATABASE_URL=postgres://$PG_USER:$POSTGRES_PASSWORD@$places/postgres?target_session_attrs=read-write"
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
