//! One attempt: one request, or two where the connection that had waited for the first was dead.

use std::time::{Duration, Instant};

use ureq::{Body, Error};

use super::failure::{Fault, Phase, TimeLimits};
use super::{Request, Sender};
use crate::domain::webhook::Target;

impl Sender {
    /// Sends it; once more, on a fresh connection and within the same time, where the reused one ended
    /// before a byte of an answer. Nobody has seen it then, so it is the same attempt. (A receiver that
    /// has, and ends the connection instead of an answer, gets it twice at most.)
    pub(super) fn send(
        &self,
        target: &Target,
        request: Request<'_>,
    ) -> Result<http::Response<Body>, Error> {
        let began = Instant::now();
        match self.prepare(target, request).send(request.body) {
            Err(Error::Other(error)) if error.downcast_ref() == Some(&Fault::Stale) => {}
            other => return other,
        }
        let left = self.limits(target).request.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Fault::TimedOut(Phase::Answer).into());
        }
        let again = self.prepare(target, request).config().timeout_global(Some(left));
        // No connection that waits is young enough.
        again.max_idle_age(Duration::ZERO).build().send(request.body)
    }

    /// How long an attempt at this receiver may take.
    pub(super) fn limits(&self, target: &Target) -> TimeLimits {
        let own = target.settings.as_ref().and_then(|settings| settings.timeout);
        let request = own.map_or(self.request_timeout, |own| own.min(self.request_timeout));
        TimeLimits { request, connect: self.connect_timeout }
    }
}
