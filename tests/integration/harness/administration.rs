//! Users, permissions, policies, limits and virtual hosts of a private broker: what an operator
//! sets by `rabbitmqctl`, by calling the same functions. The tool itself takes a second of CPU time
//! to start.

use std::fmt::Write as _;

use url::Url;
use uuid::Uuid;

use super::servers::{FaultServers, Servers};

/// The user that RabbitMQ records for a change.
const WHO: &str = "<<\"tests\">>";

/// Text as an Erlang binary, whatever characters it contains.
fn binary(text: &str) -> String {
    let mut bytes = String::new();
    for (at, byte) in text.bytes().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        write!(bytes, "{comma}{byte}").expect("a String takes all");
    }
    format!("<<{bytes}>>")
}

/// `ok = MODULE:FUNCTION(ARGUMENTS, WHO)`.
fn call(function: &str, arguments: &[&str]) -> String {
    let mut all: Vec<_> = arguments.iter().copied().map(binary).collect();
    all.push(WHO.to_owned());
    format!("ok = {function}({})", all.join(", "))
}

impl FaultServers {
    pub(crate) fn add_user(&self, name: &str, password: &str) {
        self.carry_out(&[call("rabbit_auth_backend_internal:add_user", &[name, password])]);
    }

    pub(crate) fn change_password(&self, name: &str, password: &str) {
        self.carry_out(&[call("rabbit_auth_backend_internal:change_password", &[name, password])]);
    }

    pub(crate) fn delete_user(&self, name: &str) {
        self.carry_out(&[call("rabbit_auth_backend_internal:delete_user", &[name])]);
    }

    /// Sets a user's permissions in a virtual host: configure, write and read.
    pub(crate) fn grant(&self, user: &str, vhost: &str, [configure, write, read]: [&str; 3]) {
        let arguments = [user, vhost, configure, write, read];
        self.carry_out(&[call("rabbit_auth_backend_internal:set_permissions", &arguments)]);
    }

    /// The definition applies to the virtual host's queues whose name matches the pattern.
    pub(crate) fn set_policy(&self, vhost: &str, name: &str, pattern: &str, definition: &str) {
        let [vhost, name, pattern, definition] = [vhost, name, pattern, definition].map(binary);
        self.carry_out(&[format!(
            "ok = rabbit_policy:parse_set({vhost}, {name}, {pattern}, {definition}, 0, \
             <<\"queues\">>, {WHO})"
        )]);
    }

    pub(crate) fn clear_policy(&self, vhost: &str, name: &str) {
        self.carry_out(&[call("rabbit_policy:delete", &[vhost, name])]);
    }

    /// Sets the fraction of the machine's memory above which the broker accepts no messages.
    pub(crate) fn set_memory_watermark(&self, fraction: f64) {
        self.carry_out(&[format!("vm_memory_monitor:set_vm_memory_high_watermark({fraction:.6})")]);
    }

    fn carry_out(&self, calls: &[String]) {
        self.eval(&calls.join(", "));
    }
}

/// The broker accepts no messages, as if it were short of memory, until this is dropped.
pub(crate) struct MemoryAlarm<'s>(&'s FaultServers);

impl<'s> MemoryAlarm<'s> {
    pub(crate) fn raised(fault: &'s FaultServers) -> Self {
        fault.set_memory_watermark(0.000_001);
        Self(fault)
    }
}

impl Drop for MemoryAlarm<'_> {
    fn drop(&mut self) {
        self.0.set_memory_watermark(0.6);
    }
}

/// A virtual host for one test, and a user with only the permissions that the test grants. Both are
/// deleted when it is dropped.
pub(crate) struct Vhost<'s> {
    fault: &'s FaultServers,
    pub(crate) name: String,
    owner: String,
    /// The servers, as the owner, who has all permissions.
    pub(crate) servers: Servers,
    /// The user's AMQP_URL.
    pub(crate) url: String,
}

impl<'s> Vhost<'s> {
    const POLICY: &'static str = "of-a-test";

    /// The user has no permissions yet.
    pub(crate) fn new(fault: &'s FaultServers) -> Self {
        let name = format!("v{}", &Uuid::new_v4().simple().to_string()[..12]);
        let mut url = Url::parse(&fault.servers().amqp_url).expect("AMQP_URL is a URL");
        url.set_path(&name);
        let (owner, amqp_url) = (url.username().to_owned(), url.to_string());
        let all = [&owner[..], &name, ".*", ".*", ".*"];
        fault.carry_out(&[
            call("rabbit_vhost:add", &[&name]),
            call("rabbit_auth_backend_internal:add_user", &[&name, "s3cret"]),
            call("rabbit_auth_backend_internal:set_permissions", &all),
        ]);
        url.set_username(&name).expect("it has a host");
        url.set_password(Some("s3cret")).expect("it has a host");
        let servers = Servers { amqp_url, ..fault.servers().clone() };
        Self { fault, name, owner, servers, url: url.into() }
    }

    /// Lets the owner create and delete only what matches this expression.
    pub(crate) fn may_configure(&self, expression: &str) {
        self.fault.grant(&self.owner, &self.name, [expression, ".*", ".*"]);
    }

    /// Sets the user's permissions: configure, write and read.
    pub(crate) fn grant(&self, rights: [&str; 3]) {
        self.fault.grant(&self.name, &self.name, rights);
    }

    /// Sets the user's topic permissions for an exchange: write and read.
    pub(crate) fn grant_topics(&self, exchange: &str, [write, read]: [&str; 2]) {
        let arguments = [&self.name, &self.name, exchange, write, read];
        let function = "rabbit_auth_backend_internal:set_topic_permissions";
        self.fault.carry_out(&[call(function, &arguments)]);
    }

    /// The most queues that may exist; -1: no limit.
    pub(crate) fn limit_queues(&self, most: i64) {
        let limit = format!("{{\"max-queues\":{most}}}");
        self.fault.carry_out(&[call("rabbit_vhost_limit:parse_set", &[&self.name, &limit])]);
    }

    /// The definition applies to queues whose name matches this pattern.
    pub(crate) fn set_policy(&self, pattern: &str, definition: &str) {
        self.fault.set_policy(&self.name, Self::POLICY, pattern, definition);
    }

    pub(crate) fn clear_policy(&self) {
        self.fault.clear_policy(&self.name, Self::POLICY);
    }

    /// Makes RabbitMQ no longer answer for this quorum queue, as if it had no leader.
    pub(crate) fn suspend(&self, queue: &str) {
        self.of_queue("suspend", queue);
    }

    /// Ends [`Self::suspend`].
    pub(crate) fn resume(&self, queue: &str) {
        self.of_queue("resume", queue);
    }

    fn of_queue(&self, verb: &str, queue: &str) {
        self.fault.carry_out(&[format!("ok = sys:{verb}(whereis('{}_{queue}'))", self.name)]);
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        let calls = [
            call("rabbit_vhost:delete", &[&self.name]),
            call("rabbit_auth_backend_internal:delete_user", &[&self.name]),
        ];
        self.fault.eval_at_last(&calls.join(", "));
    }
}
