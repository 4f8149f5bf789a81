//! Says which instances share a webhook's limits.

use std::time::Duration;

use crate::domain::instances::{Instance, InstanceRecord, Instances};
use crate::domain::webhook::Webhook;

/// Longer than any change takes to reach all instances.
const SETTLED: Duration = Duration::from_secs(365 * 86_400);

/// Which instances share the webhook's limits; `None` if it has none, or if at most one instance is alive.
pub(super) fn kept_by(
    alive: &[InstanceRecord],
    webhook: &Webhook,
    has_backlog: bool,
) -> Option<String> {
    let limits = webhook.limits();
    if alive.len() < 2 || limits.is_none() {
        return None;
    }
    let instances: Vec<Instance> = alive.iter().map(Instance::from).collect();
    let known = has_backlog.then_some(SETTLED);
    let has_share = |entry: &&InstanceRecord| {
        let seen = Instances::new(entry.id, instances.clone(), Duration::ZERO);
        seen.share(webhook.id, limits, known).is_some()
    };
    let mut names: Vec<&str> =
        alive.iter().filter(has_share).map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    let (count, all) = (names.len(), alive.len());
    let names = names.join(", ");
    Some(match (count == all, has_backlog) {
        (true, _) => format!("kept by {all} instances together, in equal parts: {names}"),
        (false, true) => format!("kept by {names}, of {all} instances, which consumes its backlog"),
        (false, false) => {
            format!("kept by {names}, of {all} instances: too small to be shared by them")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    use crate::domain::settings::Columns;
    use crate::domain::webhook::Secrets;

    #[test]
    fn it_says_who_keeps_them() {
        let webhook = |most: Option<&str>| {
            let columns = Columns { max_in_flight: most.map(str::to_owned), ..Columns::default() };
            Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns)
        };
        let entry = |id: u128| {
            let queues = ["q".to_owned()].into();
            InstanceRecord {
                id: Uuid::from_u128(id),
                name: format!("vm{id}:9090"),
                queues,
                beats: 0,
            }
        };
        let two = [entry(1), entry(2)];
        assert_eq!(kept_by(&two, &webhook(None), true), None);
        assert_eq!(kept_by(&two[..1], &webhook(Some("1")), true), None);
        let said = |most, has_backlog| kept_by(&two, &webhook(Some(most)), has_backlog);
        let both = "kept by 2 instances together, in equal parts: vm1:9090, vm2:9090";
        assert_eq!(said("2", false).as_deref(), Some(both));
        let one = said("2", true).expect("it has limits");
        assert!(one.ends_with(":9090, of 2 instances, which consumes its backlog"), "{one}");
        let small = said("1", false).expect("it has limits");
        assert!(small.ends_with("too small to be shared by them"), "{small}");
    }
}
