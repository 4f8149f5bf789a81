//! What to do about a delivery, in words.

use super::super::case::MOST_SHOWN;
use super::{OTHER_ACCOUNT, Wording};
use crate::broker::retry_queue;
use crate::domain::diagnosis::{Before, Remedy};
use crate::domain::shown;
use crate::domain::time::rfc3339;

impl Wording<'_> {
    /// What to do about it.
    pub(in crate::cli::why) fn remedy(&self, remedy: &Remedy) -> String {
        let id = self.webhook;
        match remedy {
            Remedy::Nothing => "nothing: the receiver has answered 2xx".to_owned(),
            Remedy::NothingUntil(due) => format!("nothing: next attempt at {}", rfc3339(*due)),
            Remedy::NothingDroppedThen => "nothing: it is dropped then".to_owned(),
            Remedy::NothingDropped => {
                "nothing: what waits for a disabled or deleted webhook is dropped".to_owned()
            }
            Remedy::ListWebhooks => "see `webhooks list`".to_owned(),
            Remedy::ChangePatterns => {
                "if it should: change its `events`, and publish the event again".to_owned()
            }
            Remedy::SetAccount(account) => format!(
                "if it should: {}, and publish the event again",
                self.set_account(account)
            ),
            Remedy::NameAccount => {
                "if it should: the producer names the event's account by the AMQP header `account`, or \
                 `account` or `account_id` in the body; publish it again with one of these"
                    .to_owned()
            }
            Remedy::Enable => format!("`webhooks enable {id}`, then publish the event again"),
            Remedy::Publish => "publish the event again".to_owned(),
            Remedy::PublishDropped => {
                "publish the event again: what was dropped is not kept".to_owned()
            }
            Remedy::RegisterDropped => {
                "if somebody should still get it: register the webhook again (`webhooks add`), then \
                 publish the event again. What was dropped is not kept"
                    .to_owned()
            }
            Remedy::EnableDropped => format!(
                "`webhooks enable {id}`, then publish the event again: what was dropped is not kept"
            ),
            Remedy::PublishUnlessReplayed => {
                "if it was replayed, ask again later; otherwise publish the event again"
                    .to_owned()
            }
            Remedy::PublishIfLost { queue } => format!(
                "if a notifier's log says `queue lost queue={queue}`, publish the event again; if it \
                 says `not usable queue={queue}`, it waits in another one"
            ),
            Remedy::GiveType => "give the type: `--type TYPE`".to_owned(),
            Remedy::AskReceiver => {
                "see the receiver's own log: the header `webhook-id` is the event's id, \
                 percent-encoded"
                    .to_owned()
            }
            Remedy::CheckRetries { origin } => {
                let retry = shown::line(&retry_queue(origin), MOST_SHOWN);
                format!(
                    "is a notifier running, and does it consume {retry}? See its /readyz, and \
                     `webhook-notifier check`. If it does, that lane is behind, or the delivery log \
                     has a gap. If its log says `queue lost` about a wait queue or {retry}, \
                     publish the event again"
                )
            }
            Remedy::EnableBefore => {
                format!("`webhooks enable {id}` before that, or it is dropped then")
            }
            Remedy::SetAccountBefore(account) => {
                let end = format!("it will be dead then, {OTHER_ACCOUNT}: {}", self.not_its_own);
                match account {
                    Some(account) => format!(
                        "{end}. If that is a mistake, before then: {}",
                        self.set_account(account)
                    ),
                    None => end,
                }
            }
            Remedy::Resume => format!("`webhooks resume {id}`: then everything is sent, in order"),
            Remedy::RaiseLimits => format!(
                "nothing, or raise the limit: `webhooks show {id}`, `webhooks set {id} --rate N` or \
                 `--max-in-flight N`"
            ),
            Remedy::AwaitReceiver => format!(
                "nothing: the notifier tries the receiver again by itself, and once it works, sends \
                 everything in order. `webhook-notifier tail --webhook {id}` shows the last attempts"
            ),
            Remedy::PublishUnlessAttempted => format!(
                "ask again once the receiver works and the webhook is not paused: if no attempt is logged \
                 for it by then, publish the event again. `webhook-notifier tail --webhook {id}` shows the \
                 attempts"
            ),
            Remedy::Register => {
                "its webhook is no longer registered: a replay would be dropped. Register it again \
                 and publish the event again"
                    .to_owned()
            }
            Remedy::Replay(before) => self.replay(before),
            Remedy::NameAccountOrPurge => format!(
                "its account is not known (an older version did not keep the AMQP header \
                 `account` of deliveries that wait). If it is that of the webhook, publish the event \
                 again with that header; {}",
                self.else_purge()
            ),
            Remedy::PublishMalformed => {
                "publish the event again: a replay would fail for the same reason".to_owned()
            }
        }
    }

    fn replay(&self, before: &Before) -> String {
        let id = self.webhook;
        let replay = format!("`webhook-notifier dead-letters replay --webhook {id}`");
        match before {
            Before::Recovery => format!("once the receiver works again: {replay}"),
            Before::Enable => {
                format!("once the receiver works again: `webhooks enable {id}`, then {replay}")
            }
            Before::StartNotifier { origin } => {
                let [origin, retry] =
                    [origin.clone(), retry_queue(origin)].map(|it| shown::line(&it, MOST_SHOWN));
                format!(
                    "start a notifier with {origin} in QUEUES, which creates {retry} again, then {replay}"
                )
            }
            Before::AskOwner => format!(
                "ask the receiver's owner why it refuses the event (`webhooks show {id}` has the statuses \
                 that are not retried); then {replay}"
            ),
            Before::Fix => format!("fix what the error says, then {replay}"),
            Before::SetAccount(account) => format!(
                "if the webhook should get it all the same: {}, then {replay}; {}",
                self.set_account(account),
                self.else_purge()
            ),
            Before::RaiseDeliveryLimit => {
                format!("raise the delivery limit of the broker's policy, then {replay}")
            }
            Before::RaiseMaxLength => {
                format!("raise the length limit of the broker's policy, then {replay}")
            }
        }
    }

    fn set_account(&self, account: &str) -> String {
        format!("`webhooks set {} {}`", self.webhook, flag_of_account(account))
    }

    fn else_purge(&self) -> String {
        format!(
            "otherwise `webhook-notifier dead-letters purge --webhook {} --reason {OTHER_ACCOUNT}`",
            self.webhook
        )
    }
}

/// The option `--account`, to be pasted into a shell, whatever the producer has chosen as account.
pub(super) fn flag_of_account(account: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@+-".contains(&byte);
    let shown = shown::line(account, MOST_SHOWN);
    match account.bytes().all(is_plain) && !account.starts_with('-') {
        true => format!("--account {shown}"),
        false => format!("--account='{}'", shown.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_to_be_pasted_into_a_shell_is_one_argument_whatever_is_in_it() {
        for (account, shown) in [
            ("acme", "--account acme"),
            ("Acme Inc; touch x", "--account='Acme Inc; touch x'"),
            ("$(id)`id`", "--account='$(id)`id`'"),
            ("it's", r"--account='it'\''s'"),
            ("-x", "--account='-x'"),
            ("größe", "--account='größe'"),
        ] {
            assert_eq!(flag_of_account(account), shown);
        }
    }
}
