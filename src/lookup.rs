//! Looks up the addresses of names with the system's resolver, in a limited number of threads.
//!
//! The system's resolver can't be interrupted: if a name server doesn't answer, it blocks its caller for half a
//! minute. So separate threads call it, and each caller waits only as long as it wants. However strangers' name
//! servers behave, the number of threads is limited. Each name is looked up once at a time, for all its callers.
//! The names of one zone (`a.example.com` and `b.example.com`) get only a share of the threads, so that other
//! names always find one. The share is the same dynamic threshold with which [`crate::domain::pace`] shares a
//! queue's capacity.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

/// How long a thread waits for its next name before it ends. The last thread stays, so that look-ups work even
/// if no other thread can be started.
const IDLE: Duration = Duration::from_secs(15);

/// Why a look-up failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookUpError {
    /// The system's resolver reported an error, such as that the name doesn't exist.
    #[error("{0}")]
    Refused(String),
    /// The name server did not answer in time.
    #[error("no answer from the name server in time")]
    Silent,
    /// No thread was free in time: other names without an answer occupy all threads, or their zone's share.
    #[error("not looked up in time: too many other look-ups still wait for their name servers")]
    Busy,
    /// There is no thread for the look-up, and none can be started.
    #[error("cannot start a thread for the look-up: {0}")]
    NoThread(String),
}

/// The result of a look-up: at least one address, or an error.
pub type LookedUp = Result<Arc<[IpAddr]>, LookUpError>;

/// Resolves a name, however long that takes.
type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Looks up names. When it is dropped, its threads end, after the answer to their current look-up.
pub struct NameLookups(Arc<Shared>);

impl fmt::Debug for NameLookups {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("NameLookups").field("most", &self.0.most).finish_non_exhaustive()
    }
}

struct Shared {
    resolve: Box<Resolve>,
    /// The most threads.
    most: usize,
    state: Mutex<State>,
    /// Idle threads wait for a name here.
    work: Condvar,
}

#[derive(Default)]
struct State {
    names: HashMap<Box<str>, Name>,
    /// Names that no thread has begun to look up, in order.
    waiting: VecDeque<Box<str>>,
    threads: usize,
    idle: usize,
    /// How many names are being looked up, in total and by zone.
    asking: usize,
    by_zone: HashMap<Box<str>, usize>,
    next_ticket: u64,
    over: bool,
}

/// A name that is looked up.
#[derive(Default)]
struct Name {
    begun: bool,
    waiters: Vec<(u64, Sender<LookedUp>)>,
}

impl NameLookups {
    /// Look-ups with the system's resolver, in at most `most` threads.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self::with_resolver(most, |name| {
            Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
        })
    }

    /// The same with another resolver.
    pub fn with_resolver(
        most: usize,
        resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            resolve: Box::new(resolve),
            most: most.max(1),
            state: Mutex::default(),
            work: Condvar::new(),
        });
        // The thread that stays. If it can't be started, the first look-up tries again.
        let _ = Shared::start(&shared, &mut shared.lock());
        Self(shared)
    }

    /// The addresses of a name. Waits at most `limit`.
    ///
    /// # Errors
    /// [`LookUpError`]; it says nothing about other names.
    pub fn find(&self, name: &str, limit: Duration) -> LookedUp {
        let (sender, answer) = bounded(1);
        let ticket = {
            let mut state = self.0.lock();
            let ticket = state.enter(name, sender);
            // A thread takes the first name that may be looked up, which needn't be this one.
            let free = state.threads.saturating_sub(state.asking);
            let needed = state.waiting.len() > free
                && state.threads < self.0.most
                && state.has_next(self.0.most);
            if needed
                && let Err(error) = Shared::start(&self.0, &mut state)
                && state.threads == 0
            {
                state.leave(name, ticket);
                return Err(LookUpError::NoThread(error.to_string()));
            }
            self.0.work.notify_one();
            ticket
        };
        match answer.recv_timeout(limit) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) if self.0.lock().leave(name, ticket) => {
                Err(LookUpError::Silent)
            }
            Err(_) => Err(LookUpError::Busy),
        }
    }
}

impl Drop for NameLookups {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(shared: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let this = Arc::clone(shared);
        thread::Builder::new().name("look-up".to_owned()).spawn(move || this.work())?;
        state.threads += 1;
        Ok(())
    }

    /// Looks up one name after another.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(name) = state.take_next(self.most) {
                drop(state);
                // Otherwise, after a panic, the name would stay marked as being looked up forever.
                let resolve = std::panic::AssertUnwindSafe(|| (self.resolve)(&name));
                let found = match std::panic::catch_unwind(resolve) {
                    Ok(Ok(addresses)) if addresses.is_empty() => {
                        Err(LookUpError::Refused("the name has no address".to_owned()))
                    }
                    Ok(Ok(addresses)) => Ok(Arc::from(addresses)),
                    Ok(Err(error)) => Err(LookUpError::Refused(error.to_string())),
                    Err(_) => Err(LookUpError::Refused("the look-up panicked".to_owned())),
                };
                state = self.lock();
                for (_, waiter) in state.ends(&name) {
                    // Fails if the caller has just given up.
                    let _ = waiter.send(found.clone());
                }
                // Other names of its zone may have waited for the end of this look-up.
                if state.idle > 0 && state.has_next(self.most) {
                    self.work.notify_all();
                }
                continue;
            }
            if state.over {
                break;
            }
            state.idle += 1;
            let began = Instant::now();
            state = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
            if began.elapsed() >= IDLE && state.threads > 1 && !state.has_next(self.most) {
                break;
            }
        }
        state.threads -= 1;
    }
}

impl State {
    fn enter(&mut self, name: &str, waiter: Sender<LookedUp>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if !self.names.contains_key(name) {
            self.waiting.push_back(name.into());
        }
        self.names.entry(name.into()).or_default().waiters.push((ticket, waiter));
        ticket
    }

    /// Removes a caller that stops waiting. Returns whether its name was being looked up.
    fn leave(&mut self, name: &str, ticket: u64) -> bool {
        let Some(found) = self.names.get_mut(name) else { return true };
        found.waiters.retain(|(other, _)| *other != ticket);
        let begun = found.begun;
        if !begun && found.waiters.is_empty() {
            self.names.remove(name);
            self.waiting.retain(|other| **other != *name);
        }
        begun
    }

    /// The position of the first name whose zone may have another thread.
    fn next(&self, most: usize) -> Option<usize> {
        let share = most.saturating_sub(self.asking).max(1);
        let has_room = |name: &str| self.by_zone.get(zone(name)).is_none_or(|of| *of < share);
        self.waiting.iter().position(|name| has_room(name))
    }

    fn has_next(&self, most: usize) -> bool {
        self.next(most).is_some()
    }

    fn take_next(&mut self, most: usize) -> Option<Box<str>> {
        let name = self.next(most).and_then(|place| self.waiting.remove(place))?;
        if let Some(found) = self.names.get_mut(&name) {
            found.begun = true;
        }
        self.asking += 1;
        *self.by_zone.entry(zone(&name).into()).or_default() += 1;
        Some(name)
    }

    /// Removes a name that has its answer. Returns its waiters.
    fn ends(&mut self, name: &str) -> Vec<(u64, Sender<LookedUp>)> {
        self.asking -= 1;
        if let Some(of) = self.by_zone.get_mut(zone(name)) {
            *of -= 1;
            if *of == 0 {
                self.by_zone.remove(zone(name));
            }
        }
        self.names.remove(name).map(|found| found.waiters).unwrap_or_default()
    }
}

/// The zone of a name, which counts as one customer's: its last two labels. For `a.co.uk` and `b.co.uk` that is
/// too broad, which delays them only while one of them gets no answer.
fn zone(name: &str) -> &str {
    let name = name.trim_end_matches('.');
    let dots = name.rmatch_indices('.').nth(1);
    dots.map_or(name, |(at, _)| &name[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::{self, Shutdown};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(1);

    /// Name servers that don't answer until they are released, except for names with `quick`.
    struct Servers {
        look_ups: Arc<NameLookups>,
        asked: Arc<AtomicUsize>,
        release: shutdown::Trigger,
    }

    fn servers(most: usize) -> Servers {
        let (release, held): (_, Shutdown) = shutdown::channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let look_ups = NameLookups::with_resolver(most, move |name| {
            counted.fetch_add(1, Ordering::SeqCst);
            if !name.contains("quick") {
                let _ = held.wait(LONG);
            }
            if name.contains("nobody") {
                return Err(io::Error::other("no such name"));
            }
            Ok(vec![IpAddr::from([192, 0, 2, 1])])
        });
        Servers { look_ups: Arc::new(look_ups), asked, release }
    }

    impl Servers {
        fn threads(&self) -> usize {
            self.look_ups.0.lock().threads
        }
    }

    #[test]
    fn silent_name_servers_occupy_a_limited_number_of_threads() {
        let servers = servers(8);
        for number in 0..200 {
            // Every second name has its own customer.
            let name = match number % 2 {
                0 => format!("a{number}.dead.example"),
                _ => format!("a.dead{number}.example"),
            };
            let failed = servers.look_ups.find(&name, SHORT).expect_err("nobody answers");
            assert!(matches!(failed, LookUpError::Silent | LookUpError::Busy), "{failed}");
            assert!(servers.threads() <= 8);
        }
        assert!(servers.look_ups.0.lock().waiting.is_empty(), "nobody waits for these any more");
        servers.release.fire();
        servers.look_ups.find("another.example.org", LONG).expect("threads are free again");
    }

    #[test]
    fn one_customers_silent_name_server_leaves_threads_to_others() {
        let servers = servers(8);
        for number in 0..50 {
            let name = format!("a{number}.dead.example");
            assert!(servers.look_ups.find(&name, SHORT).is_err());
        }
        let asked = servers.asked.load(Ordering::SeqCst);
        assert!(asked <= 4, "one zone has {asked} of eight threads");
        for number in 0..50 {
            let name = format!("quick{number}.example.org");
            servers.look_ups.find(&name, LONG).expect("it is asked for beside them");
        }
        servers.release.fire();
    }

    #[test]
    fn a_name_is_looked_up_once_however_many_wait_for_it() {
        let servers = servers(8);
        thread::scope(|scope| {
            for _ in 0..20 {
                scope
                    .spawn(|| servers.look_ups.find("slow.example", LONG).expect("it is answered"));
            }
            let waiters = || {
                let state = servers.look_ups.0.lock();
                state.names.get("slow.example").map_or(0, |name| name.waiters.len())
            };
            while waiters() < 20 {
                thread::yield_now();
            }
            servers.release.fire();
        });
        assert_eq!(servers.asked.load(Ordering::SeqCst), 1);
        assert!(servers.threads() <= 2);
    }

    #[test]
    fn the_error_of_the_resolver_is_returned() {
        let servers = servers(2);
        let failed = servers.look_ups.find("quick.nobody.example", LONG);
        assert_eq!(failed, Err(LookUpError::Refused("no such name".to_owned())));
        servers.look_ups.find("quick.example", LONG).expect("that does");
    }

    #[test]
    fn a_zone_is_the_end_of_a_name() {
        for (name, expected) in [
            ("a.b.example.com", "example.com"),
            ("example.com.", "example.com"),
            ("example.com", "example.com"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            assert_eq!(zone(name), expected, "{name}");
        }
    }
}
