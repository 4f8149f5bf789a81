# shellcheck shell=bash
#
# Clusters: three nodes of RabbitMQ, and a PostgreSQL with a standby. Part of services.sh.

# The other servers of a cluster. Each has its own directory in $LOCAL, with the same layout, and is managed
# by a services.sh that is called for that directory.
readonly MEMBERS=(broker-2 broker-3 postgres-2)
# How soon the nodes of a cluster notice that one is frozen or cut off, in seconds.
readonly NET_TICK_TIME=5

# member NAME COMMAND...: runs a command for one of these members
member() {
    local name=$1
    shift
    WEBHOOK_NOTIFIER_LOCAL_DIR=$LOCAL/$name "$REPO/scripts/services.sh" "$@"
}

is_cluster() {
    load_state
    [[ -n $NODES ]]
}

# The lines that each node's configuration needs in a cluster.
cluster_conf() {
    local number=0 node
    echo 'cluster_formation.peer_discovery_backend = classic_config'
    for node in $NODES; do
        number=$((number + 1))
        echo "cluster_formation.classic_config.nodes.$number = $node"
    done
    # The usual choice for quorum queues: a node that can't reach a majority stops serving clients.
    echo 'cluster_partition_handling = pause_minority'
}

# A variable that no broker has identifies the epmd: killing a node must not kill it, since the others need it.
epmd_mark() { printf 'WEBHOOK_NOTIFIER_EPMD_OF=%s' "$LOCAL"; }
epmd_pids() { grep -lzxF -- "$(epmd_mark)" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true; }

start_epmd() (
    [[ -z $(epmd_pids) ]] || exit 0
    detach "$LOGS/epmd.log"
    enter "$BROKER_ROOT"
    exec "${inside[@]}" env -i PATH="$PATH" "$(epmd_mark)" epmd -daemon -address 127.0.0.1 -port "$EPMD_PORT"
)

# Chooses the node names, passwords and epmd's port, which all members share, and saves them for each member.
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
            die "the servers in $LOCAL are no cluster: 'scripts/services.sh down --purge' deletes them"
        prepare_local_dir
        plan_cluster
    fi
    install_missing
    start_epmd
    start_primary
    # All at once: a node that starts waits for those that stopped after it.
    for name in "${MEMBERS[@]}"; do
        member "$name" start "${name%-*}" &
        starting+=($!)
    done
    # (In a subshell, so that its lock ends with it.)
    (start_services broker postgres) || failed=1
    for name in "${starting[@]}"; do wait "$name" || failed=1; done
    ((failed == 0)) || die "some members of the cluster have not started: see the messages above"
}

# The primary must be up before the standby starts, which copies its data.
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
    # With two primaries, clients would write to either, and the data would diverge.
    ! WEBHOOK_NOTIFIER_LOCAL_DIR=$primary "$REPO/scripts/services.sh" status postgres >/dev/null ||
        die "the primary is running: stop or kill it first"
    if [[ $standby == "$LOCAL" ]]; then promote_here; else member postgres-2 promote-here; fi
}

promote_here() {
    load_state
    run_postgres "$(postgres_owner)" pg_ctl promote --wait --timeout="$START_TIMEOUT" -D "$PG_FD_PATH/data" ||
        die "the standby could not be promoted: $(tail -n 3 -- "$LOGS/postgres.log")"
}

# isolate NODE, rejoin NODE: sets a cookie that the others refuse, or restores theirs. It always applies to all
# others at once: if two nodes see a third, but not each other, OTP closes more connections
# (prevent_overlapping_partitions).
isolate_or_rejoin() {
    local verb=$1 name=$2 other node cookie=cut calls=''
    is_cluster || die "there is no cluster: 'scripts/services.sh up --cluster' makes one"
    [[ $name == broker* ]] || die "$verb takes a RabbitMQ node, such as broker-2, not $name"
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
