//! One attempt: one request, or two if the first one's reused connection was dead.

use std::time::{Duration, Instant};

use ureq::{Body, Error};

use super::failure::{Fault, Phase, TimeLimits};
use super::{Request, Sender};
use crate::domain::webhook::Target;

impl Sender {
    /// Sends a request. If a reused connection ends before a byte of the answer, sends the request again on a
    /// fresh connection, within the same time. This is the same attempt, because the receiver hasn't processed
    /// the request. (If it has, and closed the connection instead of answering, it gets the request twice.)
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
        // So that no idle connection is young enough.
        again.max_idle_age(Duration::ZERO).build().send(request.body)
    }

    /// The time limits of an attempt at this receiver.
    pub(super) fn limits(&self, target: &Target) -> TimeLimits {
        let own = target.settings.as_ref().and_then(|settings| settings.timeout);
        let request = own.map_or(self.request_timeout, |own| own.min(self.request_timeout));
        TimeLimits { request, connect: self.connect_timeout }
    }
}
