//! The servers that a run breaks: one of each, or a cluster.

use super::bound::QUEUES;
use crate::harness::{Cluster, FaultServers, Proxy, Sandbox};

/// The servers of the notifiers.
pub(super) enum Ground {
    Pair(Pair),
    Cluster(Cluster),
}

/// One RabbitMQ and one PostgreSQL, and proxies between the notifiers and them.
pub(super) struct Pair {
    pub(super) servers: FaultServers,
    pub(super) to_broker: Proxy,
    pub(super) to_postgres: Proxy,
}

impl Ground {
    pub(super) fn set(is_cluster: bool) -> (Self, Sandbox) {
        if is_cluster {
            let cluster = Cluster::take();
            let sandbox = Sandbox::with_quorum_queues(cluster.servers(), QUEUES);
            return (Self::Cluster(cluster), sandbox);
        }
        let servers = FaultServers::take_for_long();
        let sandbox = Sandbox::on(servers.servers(), QUEUES);
        let to_broker = Proxy::before(&servers.servers().amqp_url);
        let to_postgres = Proxy::before(sandbox.database.url());
        (Self::Pair(Pair { servers, to_broker, to_postgres }), sandbox)
    }

    pub(super) fn pair(&self) -> &Pair {
        match self {
            Self::Pair(pair) => pair,
            Self::Cluster(_) => panic!("this fault is not for clusters"),
        }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        match self {
            Self::Cluster(cluster) => cluster,
            Self::Pair(_) => panic!("this fault is for clusters only"),
        }
    }

    /// AMQP_URL and DATABASE_URL of a notifier.
    pub(super) fn urls(&self, sandbox: &Sandbox) -> [String; 2] {
        let (amqp, database) = (&sandbox.servers.amqp_url, sandbox.database.url());
        match self {
            Self::Pair(pair) => [pair.to_broker.url(amqp), pair.to_postgres.url(database)],
            Self::Cluster(_) => [amqp.clone(), database.to_owned()],
        }
    }

    /// Closes the connections that were frozen.
    pub(super) fn close_frozen(&self) {
        if let Self::Pair(pair) = self {
            pair.to_broker.close_frozen();
            pair.to_postgres.close_frozen();
        }
    }
}
