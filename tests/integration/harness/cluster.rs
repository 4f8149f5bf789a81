//! Three RabbitMQ nodes, and a PostgreSQL primary with a standby.

use std::path::PathBuf;

use super::{
    LATER, Servers,
    servers::{End, listed, required, services, services_command},
    wait_until,
};

/// The RabbitMQ nodes, as named by scripts/services.sh.
pub(crate) const NODES: [&str; 3] = ["broker", "broker-2", "broker-3"];

const PRIMARY_AND_STANDBY: [&str; 2] = ["postgres", "postgres-2"];

/// The cluster that CLUSTER_SERVICES_DIR names. It is complete again when this is dropped.
pub(crate) struct Cluster {
    directory: PathBuf,
    servers: Servers,
}

impl Cluster {
    pub(crate) fn take() -> Self {
        let directory = PathBuf::from(required("CLUSTER_SERVICES_DIR"));
        services(&directory, &["up", "--cluster"]);
        let servers = listed(&services(&directory, &["env"]));
        let cluster = Self { directory, servers };
        cluster.wait_whole();
        cluster
    }

    /// URLs that name all of them.
    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    pub(crate) fn end(&self, node: &str, end: End) {
        if matches!(end, End::Kill) {
            self.eval(node, "[ok = dets:sync(Table) || Table <- dets:all()]");
        }
        services(&self.directory, &[end.verb(), node]);
    }

    pub(crate) fn start(&self, name: &str) {
        services(&self.directory, &["start", name]);
    }

    /// Freezes the node; its peers' sockets stay open.
    pub(crate) fn freeze(&self, node: &str) {
        services(&self.directory, &["freeze", node]);
    }

    pub(crate) fn end_frozen(&self, node: &str) {
        services(&self.directory, &[End::Kill.verb(), node]);
    }

    /// Closes a node's connections to the others, and prevents new ones.
    pub(crate) fn isolate(&self, node: &str) {
        services(&self.directory, &["isolate", node]);
    }

    pub(crate) fn rejoin(&self, node: &str) {
        services(&self.directory, &["rejoin", node]);
    }

    /// Which of the two is the primary: the other waits for a promotion.
    pub(crate) fn primary(&self) -> &'static str {
        let [first, second] = PRIMARY_AND_STANDBY;
        match self.directory.join("postgres/data/standby.signal").exists() {
            true => second,
            false => first,
        }
    }

    pub(crate) fn kill_primary(&self) {
        services(&self.directory, &[End::Kill.verb(), self.primary()]);
    }

    /// Promotes the standby; the primary is down.
    pub(crate) fn promote(&self) {
        services(&self.directory, &["promote"]);
    }

    /// Waits until all nodes run and see each other, and each queue has its majority without any
    /// one of them: a queue that was created while a node was away has no member there, until an
    /// operator (or RabbitMQ 3.13) adds one.
    #[track_caller]
    pub(crate) fn wait_whole(&self) {
        let running = "length([1 || Node <- [node() | nodes()], \
                       rpc:call(Node, rabbit, is_running, []) =:= true])";
        let is_whole = |node: &&str| {
            self.ask(node, running).is_some_and(|count| count == NODES.len().to_string())
                && self
                    .ask(node, "rabbit_quorum_queue:grow(node(), <<\".*\">>, <<\".*\">>, all)")
                    .is_some()
                && self
                    .ask(node, "length(rabbit_quorum_queue:list_with_minimum_quorum())")
                    .is_some_and(|critical| critical == "0")
        };
        wait_until(LATER, "the cluster is whole", || NODES.iter().all(is_whole));
    }

    fn eval(&self, node: &str, expressions: &str) -> String {
        services(&self.directory, &["at", node, "eval", &format!("{expressions}.")])
    }

    /// Asks a node that may be unable to answer.
    fn ask(&self, node: &str, expressions: &str) -> Option<String> {
        let arguments = ["at", node, "eval", &format!("{expressions}.")];
        let output = services_command(&self.directory, &arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test may have ended while a node was frozen. A second panic would abort all tests.
        for node in NODES {
            let _ = services_command(&self.directory, &["thaw", node]).output();
        }
        let _ = services_command(&self.directory, &["up"]).status();
    }
}
