# shellcheck shell=bash
#
# RabbitMQ, the server `broker`. Part of services.sh.

readonly BROKER_HOME=$LOCAL/rabbitmq
readonly BROKER_USER=webhook-notifier
readonly MAX_OPEN_FILES=65536

# The distribution's wrapper in /usr/sbin requires root and switches to the user
# rabbitmq; the script that it calls does neither.
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
    # The nodes of a cluster share an epmd, which runs already.
    [[ -n $NODES ]] || assign_port EPMD_PORT
    [[ -z $TLS ]] || assign_port BROKER_TLS_PORT
    : "${BROKER_PASSWORD:=$(random_password)}"
    save_state
    echo '[].' >"$BROKER_HOME/enabled_plugins"
    # After a crash, RabbitMQ may move an expired message to a queue that is not up yet. If that isn't
    # confirmed within this time, it moves it again. The default, three minutes, is too long for tests.
    echo '[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].' \
        >"$BROKER_HOME/advanced.config"
    # A small write-ahead log bounds the memory of quorum queues and the duration
    # of a recovery.
    cat >"$BROKER_HOME/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$BROKER_PORT
default_user = $BROKER_USER
default_pass = $BROKER_PASSWORD
log.console.level = info
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 33554432
CONF
    # Clients may have a certificate, which must be valid then.
    [[ -z $TLS ]] || cat >>"$BROKER_HOME/rabbitmq.conf" <<CONF
listeners.ssl.1 = 127.0.0.1:$BROKER_TLS_PORT
ssl_options.cacertfile = $TLS_HOME/ca.pem
ssl_options.certfile = $TLS_HOME/server.pem
ssl_options.keyfile = $TLS_HOME/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
CONF
    [[ -z $NODES ]] || cluster_conf >>"$BROKER_HOME/rabbitmq.conf"
    # No name lookup may leave the machine or wait for a name server.
    cat >"$BROKER_HOME/inetrc" <<'INETRC'
{lookup, [file]}.
{host, {127,0,0,1}, ["localhost"]}.
INETRC
}

node_of() { printf 'wn-%s@localhost' "$(cksum <<<"$1" | cut -d' ' -f1)"; }
broker_node() { node_of "$LOCAL"; }

# Sets `vars`, a variable of each calling subshell: the environment that the broker and rabbitmqctl need to
# find each other. It contains nothing else: RABBITMQ_* and ERL_* variables of the caller, like the files in
# /etc/rabbitmq, are meant for another broker.
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
        # Here and not among the server's arguments, so that it also applies to
        # the short-lived VM by which RabbitMQ starts epmd.
        ERL_ZFLAGS="-kernel inet_dist_use_interface {127,0,0,1}"
    )
}

broker_exec() (
    rabbitmq=$(find_rabbitmq)
    broker_vars
    detach "$LOGS/broker.log"
    # The VM sizes tables by this limit, so it must be neither tiny nor unlimited.
    ulimit -n "$MAX_OPEN_FILES" 2>/dev/null || ulimit -S -n "$(ulimit -H -n)"
    # shellcheck disable=SC2030,SC2031  # each subshell has its own `vars`
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
        # By default schedulers are bound to cores, which is slow on shared cores.
        RABBITMQ_SCHEDULER_BIND_TYPE=u
        ERL_CRASH_DUMP="$LOGS/erl_crash.dump"
    )
    [[ -z $NODES ]] || vars+=(RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel net_ticktime $NET_TICK_TIME")
    [[ $SYNC != no ]] || vars+=(LD_PRELOAD="$(find_eatmydata)")
    enter "$BROKER_ROOT"
    exec "${inside[@]}" env -i "${vars[@]}" setsid --fork "$rabbitmq"
)

# Its environment lacks the broker's mark, so that killing the broker doesn't kill rabbitmqctl.
run_rabbitmqctl() (
    load_state
    is_running broker || die "the broker is not running: 'scripts/services.sh start broker' starts it"
    rabbitmq=$(find_rabbitmq)
    broker_vars
    enter "$BROKER_ROOT"
    # shellcheck disable=SC2031  # see broker_exec
    exec "${inside[@]}" env -i "${vars[@]}" "${rabbitmq%/*}/rabbitmqctl" "$@"
)

# erl_call reads the cookie from HOME. Each call has its own node name, since several may run at once.
eval_in_broker() (
    load_state
    is_running broker || die "the broker is not running: 'scripts/services.sh start broker' starts it"
    broker_vars
    local result
    enter "$BROKER_ROOT"
    # shellcheck disable=SC2031  # see broker_exec
    result=$("${inside[@]}" env -i "${vars[@]}" erl_call -h "eval-$BASHPID" -sname "$(broker_node)" \
        -e <<<"$1" 2>&1) || die "$result"
    [[ $result == '{ok, '* ]] || die "$result"
    result=${result#'{ok, '}
    printf '%s\n' "${result%\}}"
)

# RabbitMQ opens its listeners at the end of its boot. So it is ready when it
# answers with the first byte of a method frame, Connection.Start.
broker_answers() (
    exec 3<>"/dev/tcp/127.0.0.1/$BROKER_PORT" || exit 1
    printf 'AMQP\0\0\11\1' >&3
    IFS= read -r -N 1 -t 5 -u 3 type && [[ $type == $'\1' ]]
) 2>/dev/null

# A library that makes fsync and similar calls do nothing. RabbitMQ has no setting for that.
find_eatmydata() {
    local found
    if [[ -n $BROKER_ROOT ]]; then
        found=$(compgen -G "$BROKER_ROOT/usr/lib/*/libeatmydata.so") && printf '%s' "${found#"$BROKER_ROOT"}"
        return
    fi
    # awk reads to the end: otherwise ldconfig could fail on a closed pipe.
    ldconfig -p | awk '/libeatmydata[.]so$/ { path = $NF } END { if (path) print path; else exit 1 }'
}
