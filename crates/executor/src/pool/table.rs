//! What the table consists of, and what goes in and out.

use std::{collections::VecDeque, time::Duration};

use model::Scale;
use tokio::time::Instant;

use super::Pool;

/// A function's deployment, while it is served.
pub(crate) type ServiceKey = u64;
/// An instance of a service.
pub(crate) type InstanceKey = u64;
/// A call that waits.
pub(crate) type CallKey = u64;

/// What bounds the instances and queues of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Instances at once, of all functions.
    pub instances: u32,
    /// How many of these places are kept for functions that have none: a function that has one
    /// takes another only if so many are left, free or with idle instances. Less than `instances`.
    pub reserve: u32,
    /// Calls that wait for an instance of one function.
    pub waiting_per_function: usize,
    /// Calls that wait, of all functions. When they are so many, a function with fewer takes the
    /// place of the last one of the function with most.
    pub waiting: usize,
}

impl PoolLimits {
    /// The usual limits of a host for so many instances: an eighth of the places, and one at the
    /// least, is kept for functions that have none. Where there is only one place, it is for all.
    pub fn for_instances(instances: u32) -> Self {
        let reserve = if instances < 2 { 0 } else { (instances / 8).max(1) };
        Self { instances, reserve, waiting_per_function: 1024, waiting: 8192 }
    }
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self::for_instances(256)
    }
}

/// How a service is scaled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) scale: Scale,
    /// An instance takes so many calls in its life; none: any number.
    pub(crate) calls_in_life: Option<u64>,
}

/// What the owner of the table has to do.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Start an instance; then say `started` or `failed`.
    Start { service: ServiceKey, instance: InstanceKey },
    /// Stop an instance, or give up its start; then say `removed`, or `failed`.
    Stop { instance: InstanceKey },
    /// A call that waited may run in an instance. It must be released.
    Grant { call: CallKey, instance: InstanceKey },
    /// A call that waited will not run.
    Refuse { call: CallKey, refusal: Refusal },
    /// A retired service has nothing left.
    Closed { service: ServiceKey },
}

/// What becomes of a call that has just come.
#[derive(Clone, Debug)]
pub(crate) enum Admission {
    /// It may run in an instance. It must be released.
    Granted(InstanceKey),
    /// An order will say.
    Waiting,
    Refused(Refusal),
}

/// Why a call does not run.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// The service is gone.
    Gone,
    /// So many calls wait already.
    Full { waiting: usize },
    /// Every place is kept by services that want it at the least.
    AllKept,
    /// The last attempt to start an instance failed, and the next one is not due.
    BackingOff { cause: protocol::CallError, retry_after: Duration },
    /// The instance that it waited for did not start.
    Failed(protocol::CallError),
}

/// How a call came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The function answered, or threw.
    Served,
    /// Nobody waits for it any more: its caller is gone, or its time is over. The worker may be
    /// replaced for that.
    Abandoned,
    /// It was lost, or did not run.
    Lost,
}

/// Calls wait for an attempt that is due so soon, if the function's instances have served before.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// An instance that ends so soon after a call of it was given up may have been replaced for that:
/// a worker gets 250 ms to stop the call, and as long to end by itself.
const EXCUSE: Duration = Duration::from_secs(2);

pub(super) struct Service {
    pub(super) policy: Policy,
    pub(super) instances: Vec<InstanceKey>,
    pub(super) waiting: VecDeque<CallKey>,
    /// In a row, without an instance in between that has lasted.
    pub(super) failures: u32,
    pub(super) failed_at: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    pub(super) last_failure: Option<protocol::CallError>,
    /// The last instance that failed had served calls before.
    pub(super) has_served_before: bool,
    pub(super) is_retired: bool,
    pub(super) is_starved: bool,
}

pub(super) struct Slot {
    pub(super) service: ServiceKey,
    pub(super) state: State,
    pub(super) in_flight: u32,
    /// Calls it was given so far.
    pub(super) taken: u64,
    /// Calls of those that it served.
    pub(super) served: u64,
    /// Since when it serves; before, since when it is being started.
    pub(super) since: Instant,
    /// When the last call was given up that it may still have been running.
    pub(super) abandoned_at: Option<Instant>,
    /// When it last had something to do.
    pub(super) used_at: Instant,
    /// It drains to make room for others.
    pub(super) is_owed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Serving,
    /// It takes no more calls and ends with its last one.
    Draining,
    Stopping,
}

/// An instance, for a report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) state: State,
    pub(crate) in_flight: u32,
    pub(crate) taken: u64,
    pub(crate) used_at: Instant,
}

/// A service, for a report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) starting: u32,
    pub(crate) serving: u32,
    pub(crate) in_flight: u32,
    pub(crate) waiting: u32,
    /// The last failure, as long as nothing has been served since.
    pub(crate) trouble: Option<protocol::CallError>,
}

impl Service {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            instances: Vec::new(),
            waiting: VecDeque::new(),
            failures: 0,
            failed_at: None,
            retry_at: None,
            last_failure: None,
            has_served_before: false,
            is_retired: false,
            is_starved: false,
        }
    }

    /// Whether the next attempt to start an instance is not due.
    pub(super) fn must_wait(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at > now)
    }

    /// Whether the next attempt is so far away that calls are not to wait for it.
    pub(super) fn is_hopeless(&self, now: Instant) -> bool {
        // Instances that serve before they fail are worth a short wait.
        let patience = if self.has_served_before { SHORT_WAIT } else { Duration::ZERO };
        self.retry_at.is_some_and(|at| at > now + patience)
    }

    /// One more failure, of an instance that had served so many calls.
    pub(super) fn blame(&mut self, cause: protocol::CallError, served: u64, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.retry_at = Some(now + autoscaler::back_off(self.failures));
        self.last_failure = Some(cause);
        self.has_served_before = served > 0;
    }

    /// An instance that serves since `since` has lasted: what failed before it is forgotten.
    pub(super) fn forgive(&mut self, since: Instant) {
        if self.failed_at.is_none_or(|failed_at| failed_at <= since) {
            (self.failures, self.failed_at, self.retry_at) = (0, None, None);
        }
    }
}

impl Slot {
    pub(super) fn new(service: ServiceKey, now: Instant) -> Self {
        Self {
            service,
            state: State::Starting,
            in_flight: 0,
            taken: 0,
            served: 0,
            since: now,
            abandoned_at: None,
            used_at: now,
            is_owed: false,
        }
    }

    /// Whether it drains to make room for others.
    pub(super) fn owes(&self) -> bool {
        self.is_owed && self.state == State::Draining
    }

    pub(super) fn has_lasted(&self, now: Instant) -> bool {
        let lived = now.saturating_duration_since(self.since);
        self.state != State::Starting && autoscaler::has_lasted(self.served, lived)
    }

    /// Whether it may end now because of a call that was given up.
    pub(super) fn is_excused(&self, now: Instant) -> bool {
        self.abandoned_at.is_some_and(|at| now.saturating_duration_since(at) <= EXCUSE)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Serving && self.in_flight == 0
    }

    pub(super) fn is_live(&self) -> bool {
        self.state != State::Stopping
    }

    /// Whether it runs calls or will, without having been told to end.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving)
    }
}

impl Pool {
    /// An instance as it is now.
    pub(crate) fn see(&self, instance: InstanceKey) -> Option<Seen> {
        let Slot { state, in_flight, taken, used_at, .. } = *self.instances.get(&instance)?;
        Some(Seen { state, in_flight, taken, used_at })
    }

    /// A service as it is now.
    pub(crate) fn tally(&self, service: ServiceKey) -> Tally {
        let Some(known) = self.services.get(&service) else { return Tally::default() };
        let slots = || known.instances.iter().map(|key| &self.instances[key]);
        let count = |state| slots().filter(|slot| slot.state == state).count();
        Tally {
            starting: small(count(State::Starting)),
            serving: small(count(State::Serving) + count(State::Draining)),
            in_flight: slots().map(|slot| slot.in_flight).sum(),
            waiting: small(known.waiting.len()),
            trouble: known.last_failure.clone(),
        }
    }
}

/// Counts here are bounded by limits far below four billion.
pub(super) fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
