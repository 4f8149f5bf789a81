//! Faults in a cluster: never of two of its servers at once.

use std::{thread, time::Duration};

use super::{
    cast::Webhook,
    faults::Span,
    plan::{Fault, Step},
    stage::Stage,
};
use crate::harness::{cluster::NODES, servers::End};

/// How soon after a promotion a change to the table must take effect.
const HONOURED: Duration = Duration::from_secs(10);

impl Stage {
    pub(super) fn strike_cluster(&mut self, step: &Step) -> Span {
        let node = NODES[step.target % NODES.len()];
        match step.fault {
            Fault::PrimaryKilled => return self.lose_primary(step.broken),
            Fault::RollingRestart => return self.restart_all(step.target),
            _ => {}
        }
        let struck = self.now();
        let cluster = self.ground.cluster();
        match step.fault {
            Fault::NodeKilled => cluster.end(node, End::Kill),
            Fault::NodeStopped => cluster.end(node, End::Stop),
            Fault::NodeFrozen => cluster.freeze(node),
            _ => cluster.isolate(node),
        }
        thread::sleep(step.broken);
        let cluster = self.ground.cluster();
        match step.fault {
            Fault::NodeKilled | Fault::NodeStopped => cluster.start(node),
            Fault::NodeFrozen => {
                // It can't be thawed: the others have continued without it, and Mnesia, where RabbitMQ 3
                // keeps its queues' definitions, would be inconsistent until the node is restarted.
                cluster.end_frozen(node);
                cluster.start(node);
            }
            _ => cluster.rejoin(node),
        }
        cluster.wait_whole();
        (struck, self.now())
    }

    fn restart_all(&mut self, first: usize) -> Span {
        let struck = self.now();
        for node in NODES.into_iter().cycle().skip(first % NODES.len()).take(NODES.len()) {
            let cluster = self.ground.cluster();
            cluster.end(node, End::Stop);
            cluster.start(node);
            cluster.wait_whole();
        }
        (struck, self.now())
    }

    /// Kills the primary and promotes the standby. Afterwards the former primary is the standby.
    fn lose_primary(&mut self, broken: Duration) -> Span {
        let struck = self.now();
        let primary = self.ground.cluster().primary();
        self.ground.cluster().kill_primary();
        thread::sleep(broken);
        self.ground.cluster().promote();
        let before = self.held_for_pauses();
        self.set_paused(Webhook::Paused, true);
        if !self.await_that(HONOURED, |stage| stage.held_for_pauses() > before) {
            self.problems
                .push(format!("no change was honoured within {HONOURED:?} of a promotion"));
        }
        self.set_paused(Webhook::Paused, false);
        self.ground.cluster().start(primary);
        (struck, self.now())
    }

    /// How many deliveries were held back because of a pause.
    fn held_for_pauses(&self) -> f64 {
        let held = [("reason", "paused")];
        let of =
            |one: &crate::harness::Notifier| one.metric("webhook_deliveries_held_total", &held);
        self.fleet.iter().map(of).sum()
    }
}
