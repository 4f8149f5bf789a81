//! Thousands of webhooks, and events that one webhook each wants.

use std::{
    fmt,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    harness::{Notifier, Sandbox},
    load::Producer,
    receiver::{Behaviour, Log, Receiver},
    report::Report,
};

/// Coprime with any number of types: so the events' order is neither that of the webhooks nor random.
const STRIDE: u64 = 7_919;

/// The number of webhooks that get events, if they have accounts.
const ACTIVE: u32 = 10_000;

/// The number of webhooks, and of the published events' types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) webhooks: u32,
    pub(super) types: u32,
    /// Each webhook belongs to an account, and each account has one for every type. Without accounts,
    /// the webhooks beyond the types want other types, which no event has.
    pub(super) has_accounts: bool,
}

impl Size {
    pub(super) const SMALL: Self = Self::new(10, 10);

    pub(super) const fn new(webhooks: u32, types: u32) -> Self {
        Self { webhooks, types, has_accounts: false }
    }

    pub(super) const fn of_accounts(webhooks: u32, types: u32) -> Self {
        Self { webhooks, types, has_accounts: true }
    }

    /// The number of webhooks that get events.
    pub(super) fn active(self) -> u32 {
        if self.has_accounts { ACTIVE.min(self.webhooks) } else { self.types }
    }

    /// The webhook that wants an event.
    fn webhook(self, event: u32) -> u32 {
        let active = self.active();
        let place = u64::from(event) * STRIDE % u64::from(active);
        let place = u32::try_from(place).expect("less than there are");
        if !self.has_accounts {
            return place;
        }
        // Events come from this many accounts, of each type in turn.
        let accounts = self.webhooks / self.types;
        place * (accounts / active.min(accounts)) % accounts * self.types + place % self.types
    }

    /// The type that a webhook wants.
    fn kind(self, webhook: u32) -> String {
        let number = if self.has_accounts { webhook % self.types } else { webhook };
        format!("shop.order.t{number:07}")
    }

    fn account(self, webhook: u32) -> Option<String> {
        self.has_accounts.then(|| format!("acct_{}", webhook / self.types))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { webhooks, types, has_accounts } = self;
        write!(f, "{} webhooks", thousands(*webhooks))?;
        if *has_accounts {
            write!(f, " of {} accounts", thousands(webhooks / types))?;
        }
        write!(f, ", {} types", thousands(*types))
    }
}

/// 100,000
pub(super) fn thousands(number: u32) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1_000), number % 1_000),
    }
}

/// Webhooks of one receiver, with their own schema and queues.
pub(super) struct Crowd {
    pub(super) size: Size,
    pub(super) sandbox: Sandbox,
    pub(super) log: Arc<Log>,
    /// The number of the next event.
    next: u32,
    _receiver: Receiver,
}

impl Crowd {
    pub(super) fn register(size: Size, queues: usize) -> Self {
        let mut sandbox = Sandbox::new();
        for number in 1..queues {
            let queue = format!("{}_{number}", sandbox.queue());
            let declared = sandbox.broker.declare(&queue, amiquip::FieldTable::new());
            declared.expect("a queue under a fresh name");
            sandbox.queues.push(queue);
        }
        let log = Log::new();
        let receiver = Receiver::start(Behaviour::Prompt, &log);
        let count = |number: u32| i32::try_from(number).expect("not that many");
        sandbox.database.execute(
            "INSERT INTO webhooks (post_url, events, account)
             SELECT $1 || n,
                    ARRAY['shop.order.t' || lpad((CASE WHEN $4 THEN n % $3 ELSE n END)::text, 7, '0')],
                    CASE WHEN $4 THEN 'acct_' || n / $3 END
             FROM generate_series(0, $2 - 1) AS n",
            &[
                &receiver.url(0).trim_end_matches('0'),
                &count(size.webhooks),
                &count(size.types),
                &size.has_accounts,
            ],
        );
        // PostgreSQL does that by itself within a minute.
        sandbox.database.execute("ANALYZE webhooks", &[]);
        Self { size, sandbox, log, next: 0, _receiver: receiver }
    }

    /// Publishes this number of events, evenly to all queues. Returns the events' numbers.
    pub(super) fn publish(&mut self, events: u32) -> Range<u32> {
        let numbers = self.next..self.next + events;
        self.next = numbers.end;
        let mut producer = Producer::open(&self.sandbox.servers.amqp_url);
        for (event, queue) in numbers.clone().zip(self.sandbox.queues.iter().cycle()) {
            let webhook = self.size.webhook(event);
            let account = self.size.account(webhook);
            producer.publish_for(account, queue, event, &self.size.kind(webhook));
        }
        producer.settle();
        numbers
    }

    /// Requires that all events so far have been delivered, once.
    pub(super) fn check(&self, case: &str, report: &mut Report) {
        let expected = (0..self.next).map(|event| (event, self.size.webhook(event)));
        report.require_complete(case, self.log.differences_by_delivery(expected));
    }

    /// Stops a notifier, and requires that its queues are empty.
    pub(super) fn end(&self, case: &str, notifier: Notifier, report: &mut Report) {
        notifier.terminate();
        for queue in &self.sandbox.queues {
            for queue in [queue.clone(), format!("{queue}.retry"), format!("{queue}.dead")] {
                let left = self.sandbox.broker.ready(&queue);
                if left.is_some_and(|left| left > 0) {
                    report.wrong(format!("{case}: {queue} holds {left:?} messages at the end"));
                }
            }
        }
    }
}

/// Starts a notifier. Returns it once it is ready, and the milliseconds until then.
pub(super) fn start(sandbox: &Sandbox) -> (Notifier, f64) {
    const TIMEOUT: Duration = Duration::from_secs(120);
    let began = Instant::now();
    let notifier = sandbox.notifier().start_unready();
    while !notifier.is_ready() {
        assert!(began.elapsed() < TIMEOUT, "not ready: {:#?}", notifier.stderr());
        std::thread::sleep(Duration::from_millis(1));
    }
    (notifier, began.elapsed().as_secs_f64() * 1e3)
}
