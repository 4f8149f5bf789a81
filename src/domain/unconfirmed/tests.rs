use super::*;
use proptest::prelude::*;

/// A step on a channel. Messages are numbers.
#[derive(Clone, Debug)]
enum Step {
    Publish,
    Ack(u64, bool),
    Nack(u64, bool),
    /// The message with this tag is returned. It is kept if the flag is set, otherwise published again.
    Return(u64, bool),
    /// Nobody waits for the multiples of this number any more.
    Expire(u32),
    /// The multiples of this number are taken back.
    Take(u32),
    /// The refused and the returned messages are taken.
    Collect,
    /// The channel is lost, and the messages that are left are published on another one, whose tags begin
    /// at 1 again.
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    // Tags that exist and tags that don't, 0 among them, and the largest ones.
    let tag = || prop_oneof![8 => 0_u64..24, 1 => (u64::MAX - 24)..=u64::MAX];
    prop_oneof![
        8 => Just(Step::Publish),
        3 => (tag(), any::<bool>()).prop_map(|(tag, multiple)| Step::Ack(tag, multiple)),
        2 => (tag(), any::<bool>()).prop_map(|(tag, multiple)| Step::Nack(tag, multiple)),
        2 => (tag(), any::<bool>()).prop_map(|(tag, is_kept)| Step::Return(tag, is_kept)),
        1 => (2_u32..5).prop_map(Step::Expire),
        1 => (2_u32..5).prop_map(Step::Take),
        1 => Just(Step::Collect),
        1 => Just(Step::Lose),
    ]
}

/// A simple model of the same: the list of all published messages, in order, from which a message is
/// struck out when its outcome is known.
#[derive(Default)]
struct Model {
    published: Vec<Option<u32>>,
    refused: Vec<u32>,
    unrouted: Vec<u32>,
}

impl Model {
    fn strike_out(&mut self, is_meant: impl Fn(u64, u32) -> bool) -> Vec<u32> {
        let all = (1..).zip(&mut self.published);
        let struck = all.filter_map(|(tag, one)| one.take_if(|message| is_meant(tag, *message)));
        struck.collect()
    }

    fn confirm(&mut self, tag: u64, multiple: bool) -> Vec<u32> {
        self.strike_out(|of, _| of == tag || (multiple && of < tag))
    }

    fn left(self) -> Vec<u32> {
        let open = self.published.into_iter().flatten();
        open.chain(self.refused).chain(self.unrouted).collect()
    }
}

fn check(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut channel, mut model) = (Unconfirmed::default(), Model::default());
    let mut messages = 0..;
    let mut ended: Vec<u32> = Vec::new();
    for step in steps {
        match step {
            Step::Publish => {
                let message = messages.next().expect("there are enough numbers");
                model.published.push(Some(message));
                let expected = (model.published.len() as u64, &message);
                prop_assert_eq!(channel.publish(message), expected);
            }
            Step::Ack(tag, multiple) => {
                let confirmed: Vec<u32> = channel.ack(tag, multiple).collect();
                prop_assert_eq!(&confirmed, &model.confirm(tag, multiple));
                ended.extend(confirmed);
            }
            Step::Nack(tag, multiple) => {
                channel.nack(tag, multiple);
                let refused = model.confirm(tag, multiple);
                model.refused.extend(refused);
            }
            Step::Return(tag, is_kept) => {
                let returned = channel.take_returned(tag);
                prop_assert_eq!(returned.as_slice(), model.confirm(tag, false));
                if is_kept {
                    channel.keep_unrouted(returned);
                    model.unrouted.extend(returned);
                } else if let Some(message) = returned {
                    channel.publish(message);
                    model.published.push(Some(message));
                }
            }
            Step::Expire(number) => {
                let is_wanted = |message: &u32| !message.is_multiple_of(number);
                channel.expire(is_wanted);
                ended.extend(model.strike_out(|_, message| !is_wanted(&message)));
                ended.extend(model.unrouted.extract_if(.., |message| !is_wanted(message)));
            }
            Step::Take(number) => {
                let is_taken = |message: &u32| message.is_multiple_of(number);
                let taken = channel.take_if(is_taken);
                prop_assert_eq!(&taken, &model.strike_out(|_, message| is_taken(&message)));
                ended.extend(taken);
            }
            Step::Lose => {
                let left: Vec<u32> = std::mem::take(&mut channel).into_left().collect();
                prop_assert_eq!(&left, &std::mem::take(&mut model).left());
                for message in left {
                    channel.publish(message);
                    model.published.push(Some(message));
                }
            }
            Step::Collect => {
                let (refused, unrouted) = (channel.take_refused(), channel.take_unrouted());
                prop_assert_eq!(&refused, &std::mem::take(&mut model.refused));
                prop_assert_eq!(&unrouted, &std::mem::take(&mut model.unrouted));
                ended.extend(refused);
                ended.extend(unrouted);
            }
        }
        prop_assert!(channel.iter().eq(model.published.iter().flatten()));
        let open = model.published.iter().flatten().count();
        prop_assert_eq!((channel.len(), channel.is_empty()), (open, open == 0));
        prop_assert_eq!(channel.refused(), &model.refused);
        prop_assert_eq!(channel.unrouted(), &model.unrouted);
    }
    let left: Vec<u32> = channel.into_left().collect();
    prop_assert_eq!(&left, &model.left());
    ended.extend(left);
    ended.sort_unstable();
    let all: Vec<u32> = (0..messages.start).collect();
    prop_assert_eq!(ended, all, "each message has one outcome");
    Ok(())
}

proptest! {
    #[test]
    fn each_message_has_exactly_one_outcome_whatever_the_broker_says(
        steps in prop::collection::vec(step(), 0..48),
    ) {
        check(steps)?;
    }
}

/// A channel on which this number of messages were published. Each message is equal to its tag.
fn channel(messages: u64) -> Unconfirmed<u64> {
    let mut channel = Unconfirmed::default();
    for message in 1..=messages {
        channel.publish(message);
    }
    channel
}

#[track_caller]
fn confirms(channel: &mut Unconfirmed<u64>, tag: u64, multiple: bool, expected: &[u64]) {
    assert_eq!(channel.ack(tag, multiple).collect::<Vec<_>>(), expected, "{tag} {multiple}");
}

#[test]
fn an_ack_confirms_one_message_or_all_up_to_it_once() {
    let mut channel = channel(5);
    confirms(&mut channel, 2, false, &[2]);
    confirms(&mut channel, 2, false, &[]);
    confirms(&mut channel, 4, true, &[1, 3, 4]);
    confirms(&mut channel, 0, true, &[]);
    confirms(&mut channel, u64::MAX, true, &[5]);
    assert!(channel.is_empty());
}

#[test]
fn an_ack_does_not_confirm_messages_that_are_published_later() {
    let mut channel = channel(1);
    confirms(&mut channel, 2, false, &[]);
    confirms(&mut channel, 2, true, &[1]);
    channel.publish(2);
    assert_eq!(channel.into_left().collect::<Vec<_>>(), [2]);
}

#[test]
fn a_returned_message_is_not_confirmed_by_any_ack() {
    let mut channel = channel(2);
    let returned = channel.take_returned(1);
    assert_eq!(returned, Some(1));
    channel.keep_unrouted(returned);
    confirms(&mut channel, 1, false, &[]);
    // Nor by an ack of a very large tag.
    confirms(&mut channel, u64::MAX - 1, false, &[]);
    confirms(&mut channel, u64::MAX, true, &[2]);
    assert_eq!(channel.take_returned(1), None);
    assert_eq!(channel.into_left().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_message_that_is_published_again_is_confirmed_by_its_new_tag() {
    let mut channel = channel(2);
    let returned = channel.take_returned(1).expect("it is open");
    assert_eq!(channel.publish(returned), (3, &1));
    confirms(&mut channel, 2, true, &[2]);
    confirms(&mut channel, 3, false, &[1]);
}

#[test]
fn the_messages_that_are_left_keep_their_order() {
    let mut channel = channel(6);
    confirms(&mut channel, 3, false, &[3]);
    channel.nack(2, false);
    let returned = channel.take_returned(5);
    channel.keep_unrouted(returned);
    assert_eq!(channel.into_left().collect::<Vec<_>>(), [1, 4, 6, 2, 5]);
}
