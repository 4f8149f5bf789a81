# shellcheck shell=bash
#
# Clusters: three nodes of RabbitMQ, and a PostgreSQL with a standby. Part of services.sh.

# The further servers of a cluster. Each has a directory of its own in $LOCAL, of the same layout, and is
# looked after by services.sh, called for that directory.
readonly MEMBERS=(broker-2 broker-3 postgres-2)
# How soon the nodes of a cluster notice that one is frozen or cut off, in seconds.
readonly NET_TICK_TIME=5

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
