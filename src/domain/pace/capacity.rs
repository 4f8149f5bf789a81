//! One queue's capacity and how it is shared.
//!
//! A share is a dynamic threshold, as switches use it to share packet memory (Choudhury and Hahne,
//! *Dynamic Queue Length Thresholds for Shared-Memory Packet Switches*, 1998): a webhook gets another
//! place while it has fewer places than are free. So one webhook that takes all it can get has half of
//! the capacity, k such webhooks have 1/(k+1) each, and the same share is always free for the next one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Hold;
use crate::domain::receiver::Class;
use crate::domain::webhook::Group;

/// One queue's capacity, and the requests that use it.
#[derive(Clone, Debug)]
pub(super) struct Capacity {
    /// How many requests may be in flight.
    most: usize,
    /// All requests in flight.
    total: RequestCounts,
    /// The requests in flight of each group that has any.
    groups: HashMap<Group, RequestCounts>,
}

/// Requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestCounts {
    pub(super) all: usize,
    /// Those to slow receivers.
    pub(super) slow: usize,
    /// Those to unproven receivers.
    pub(super) unproven: usize,
}

impl RequestCounts {
    fn add(&mut self, class: Class) {
        self.all += 1;
        match class {
            Class::Prompt => {}
            Class::Unproven => self.unproven += 1,
            Class::Slow => self.slow += 1,
        }
    }

    fn remove(&mut self, class: Class) {
        self.all -= 1;
        match class {
            Class::Prompt => {}
            Class::Unproven => self.unproven -= 1,
            Class::Slow => self.slow -= 1,
        }
    }
}

impl Capacity {
    pub(super) fn new(most: usize) -> Self {
        Self { most, total: RequestCounts::default(), groups: HashMap::new() }
    }

    pub(super) fn total(&self) -> RequestCounts {
        self.total
    }

    pub(super) fn is_full(&self) -> bool {
        self.total.all >= self.most
    }

    /// Checks whether another request may begin to a receiver of this class and group that has
    /// `in_flight` requests. If the queue is full, checks whether it could begin with one free place.
    pub(super) fn check(&self, class: Class, group: Group, in_flight: usize) -> Result<(), Hold> {
        let most = self.most;
        let free = (most - self.total.all.min(most)).max(1);
        let RequestCounts { slow, unproven, .. } = self.total;
        let of_group = self.groups.get(&group).copied().unwrap_or_default();
        if in_flight >= free {
            return Err(Hold::Share);
        }
        if of_group.all >= 3 * free {
            return Err(Hold::Group);
        }
        // Parts of a small capacity are rounded up: half of a capacity of one is one request.
        let for_others = most - part(most, 4).min(most - 1);
        let left_to_others = for_others.saturating_sub(slow + unproven);
        match class {
            Class::Prompt => Ok(()),
            Class::Slow => {
                let left = part(most, 2).saturating_sub(slow);
                let has_room = left > 0 && left_to_others > 0 && of_group.slow < left;
                has_room.then_some(()).ok_or(Hold::Slow)
            }
            Class::Unproven => {
                let left = left_to_others;
                let has_room = left > 0 && of_group.unproven < left && in_flight == 0;
                has_room.then_some(()).ok_or(Hold::Unproven)
            }
        }
    }

    /// Takes a place for a request that begins.
    pub(super) fn take(&mut self, class: Class, group: Group) {
        self.total.add(class);
        self.groups.entry(group).or_default().add(class);
    }

    /// Frees the place of a request that was counted with this class.
    pub(super) fn free(&mut self, class: Class, group: Group) {
        self.total.remove(class);
        if let Entry::Occupied(mut counts) = self.groups.entry(group) {
            counts.get_mut().remove(class);
            if counts.get().all == 0 {
                counts.remove();
            }
        }
    }
}

/// A part of the capacity, rounded up: at least one.
fn part(most: usize, divisor: usize) -> usize {
    most.div_ceil(divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests each of these receivers gets if they ask in turn until none gets another, and
    /// how many places are left.
    fn shared(most: usize, receivers: &[(Class, Group)]) -> (Vec<usize>, usize) {
        let mut capacity = Capacity::new(most);
        let mut in_flight = vec![0; receivers.len()];
        loop {
            let before = capacity.total.all;
            for ((class, group), in_flight) in receivers.iter().zip(&mut in_flight) {
                if !capacity.is_full() && capacity.check(*class, *group, *in_flight).is_ok() {
                    capacity.take(*class, *group);
                    *in_flight += 1;
                }
            }
            if capacity.total.all == before {
                return (in_flight, most - before);
            }
        }
    }

    fn groups(class: Class, count: u64) -> Vec<(Class, Group)> {
        (0..count).map(|n| (class, Group::of(&n.to_string()))).collect()
    }

    #[test]
    fn k_webhooks_get_a_share_of_one_in_k_plus_one_each() {
        assert_eq!(shared(64, &groups(Class::Prompt, 1)), (vec![32], 32));
        assert_eq!(shared(64, &groups(Class::Prompt, 3)), (vec![16; 3], 16));
        let (in_flight, left) = shared(64, &groups(Class::Prompt, 20));
        assert!(in_flight.iter().all(|n| (3..=4).contains(n)), "{in_flight:?}");
        assert!(left >= 3);
        assert_eq!(shared(64, &groups(Class::Prompt, 100)).1, 0, "one each, as far as it goes");
    }

    #[test]
    fn slow_receivers_get_half_and_slow_and_unproven_together_three_quarters() {
        let (in_flight, left) = shared(64, &groups(Class::Slow, 100));
        assert_eq!((in_flight.iter().sum::<usize>(), left), (32, 32));
        let (in_flight, left) = shared(64, &groups(Class::Unproven, 100));
        assert_eq!((in_flight.iter().sum::<usize>(), left), (48, 16));
        for [first, second] in [[Class::Slow, Class::Unproven], [Class::Unproven, Class::Slow]] {
            let mut both = groups(first, 100);
            both.extend(groups(second, 100));
            let (in_flight, left) = shared(64, &both);
            assert_eq!((in_flight.iter().sum::<usize>(), left), (48, 16), "{first:?} first");
            let slow = if first == Class::Slow { &in_flight[..100] } else { &in_flight[100..] };
            assert!(slow.iter().sum::<usize>() <= 32);
        }
    }

    #[test]
    fn one_group_leaves_part_of_each_class_to_the_other_groups() {
        let one = |class, count| vec![(class, Group::of("one")); count];
        assert_eq!(shared(64, &one(Class::Slow, 100)).1, 64 - 16);
        assert_eq!(shared(64, &one(Class::Unproven, 100)).1, 64 - 24);
        assert_eq!(shared(64, &one(Class::Prompt, 100)).1, 64 - 48);
    }

    #[test]
    fn the_smallest_capacity_serves_every_class() {
        for most in 1..6 {
            for class in [Class::Prompt, Class::Unproven, Class::Slow] {
                let (in_flight, _) = shared(most, &groups(class, 100));
                assert!(in_flight.iter().sum::<usize>() >= 1, "{class:?} of {most}");
            }
        }
        // With two places or more, one is reserved for the prompt.
        for most in 2..70 {
            let mut others = groups(Class::Slow, 100);
            others.extend(groups(Class::Unproven, 100));
            assert!(shared(most, &others).1 >= 1, "{most}");
        }
    }

    #[test]
    fn a_request_that_ends_frees_its_place_and_its_group() {
        let mut capacity = Capacity::new(2);
        let group = Group::of("a");
        for class in [Class::Slow, Class::Unproven, Class::Prompt] {
            capacity.take(class, group);
            capacity.free(class, group);
        }
        assert_eq!(capacity.total, RequestCounts::default());
        assert!(capacity.groups.is_empty());
    }
}
