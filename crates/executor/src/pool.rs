//! Which instance runs which call: a table and its rules, without clocks, tasks or I/O.
//!
//! ```text
//!              started             grant, release
//! Starting ─────────────► Serving ◄──────────────► Serving
//!    │ failed                │  life is over, taken for others      ended, or idle for too long
//!    ▼                       ├────────────────────► Draining ──┐        │
//!  (gone)                    └─────────────────────────────────┴────────┴──► Stopping ──► (gone)
//! ```
//!
//! Whoever owns the table tells it what happened and carries out its [`Order`]s. Each rule holds
//! after every single step, so histories of random steps can be checked; `tests` does.

mod calls;
mod room;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use autoscaler::Load;
use model::Scale;
use tokio::time::Instant;

pub use table::PoolLimits;
pub(crate) use table::{
    Admission, CallKey, Ended, InstanceKey, Order, Policy, Refusal, ServiceKey, State, Tally,
};
use table::{Service, Slot, small};

/// The table.
pub(crate) struct Pool {
    limits: PoolLimits,
    services: HashMap<ServiceKey, Service>,
    instances: HashMap<InstanceKey, Slot>,
    /// Starting, serving and draining instances.
    live: u32,
    stopping: u32,
    /// Calls that wait, of all services.
    waiting: usize,
    /// Services that need an instance and found no room, longest first.
    starved: VecDeque<ServiceKey>,
    /// Since when fewer places are left than are kept for functions that have none.
    short_since: Option<Instant>,
    /// Services whose next attempt is not due; in order, so that a history always goes the same way.
    backing_off: BTreeSet<ServiceKey>,
    next_key: u64,
    orders: Vec<Order>,
}

impl Pool {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            services: HashMap::new(),
            instances: HashMap::new(),
            live: 0,
            stopping: 0,
            waiting: 0,
            starved: VecDeque::new(),
            short_since: None,
            backing_off: BTreeSet::new(),
            next_key: 0,
            orders: Vec::new(),
        }
    }

    /// What is to be done since the last time this was asked.
    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// A service without instances. [`Pool::warm`] starts those that it wants at the least.
    pub(crate) fn register(&mut self, policy: Policy) -> ServiceKey {
        let key = self.new_key();
        self.services.insert(key, Service::new(policy));
        key
    }

    /// Starts what a service wants at the least, and be it that nobody has called: `least`.
    pub(crate) fn warm(&mut self, service: ServiceKey, least: u32, now: Instant) {
        self.scale_to(service, least, now);
    }

    /// A start succeeded.
    pub(crate) fn started(&mut self, instance: InstanceKey, now: Instant) {
        let Some(slot) = self.instances.get_mut(&instance) else { return };
        if slot.state != State::Starting {
            return;
        }
        (slot.state, slot.since, slot.used_at) = (State::Serving, now, now);
        let service = slot.service;
        self.grant_waiting(service, now);
        self.settle(instance, now);
    }

    /// A start failed, or was given up: then there is no cause.
    pub(crate) fn failed(
        &mut self,
        instance: InstanceKey,
        cause: Option<protocol::CallError>,
        now: Instant,
    ) {
        let Some(Slot { service, .. }) = self.forget(instance) else { return };
        if let Some(cause) = cause {
            if let Some(known) = self.services.get_mut(&service) {
                known.blame(cause.clone(), 0, now);
            }
            self.refuse_hopeless(service, &cause);
        }
        self.go_on_without(service, now);
    }

    /// An instance takes no more calls: it has ended, or is about to.
    pub(crate) fn ended(&mut self, instance: InstanceKey, now: Instant) {
        let Some(slot) = self.instances.get_mut(&instance) else { return };
        if !slot.is_live() {
            return;
        }
        slot.state = State::Stopping;
        let service = slot.service;
        self.live -= 1;
        self.stopping += 1;
        self.feed(now);
        // After a failure it counts how this one ended, which `removed` will say.
        if self.services.get(&service).is_some_and(|known| known.failures == 0) {
            self.scale(service, now);
        }
    }

    /// An instance is gone and released. If nobody asked it to end, that is said with how it did;
    /// whether it is held against its service is decided here.
    pub(crate) fn removed(
        &mut self,
        instance: InstanceKey,
        own_end: Option<protocol::CallError>,
        now: Instant,
    ) {
        let Some(slot) = self.forget(instance) else { return };
        let service = slot.service;
        if let Some(known) = self.services.get_mut(&service) {
            if slot.has_lasted(now) {
                known.forgive(slot.since);
            } else if let Some(cause) = own_end
                && !slot.is_excused(now)
            {
                known.blame(cause.clone(), slot.served, now);
                if known.is_hopeless(now) {
                    self.refuse_hopeless(service, &cause);
                }
            }
        }
        self.go_on_without(service, now);
    }

    /// No new instances for a service from now on but for calls that come all the same; those it
    /// has end as soon as they are idle.
    pub(crate) fn retire(&mut self, service: ServiceKey, now: Instant) {
        let Some(known) = self.services.get_mut(&service) else { return };
        known.is_retired = true;
        if known.waiting.is_empty() {
            for instance in known.instances.clone() {
                if self.instances.get(&instance).is_some_and(Slot::is_idle) {
                    self.stop(instance);
                }
            }
        }
        self.close_if_done(service);
        self.feed(now);
    }

    /// Changes how many instances of a service are kept although nobody calls.
    pub(crate) fn keep(&mut self, service: ServiceKey, min: u32, now: Instant) {
        let Some(known) = self.services.get_mut(&service) else { return };
        known.policy.scale.min = min;
        self.feed(now);
        self.scale(service, now);
    }

    /// Ends a service whatever it does.
    pub(crate) fn close(&mut self, service: ServiceKey, now: Instant) {
        let Some(known) = self.services.get_mut(&service) else { return };
        known.is_retired = true;
        let waiting = std::mem::take(&mut known.waiting);
        let instances = known.instances.clone();
        self.waiting -= waiting.len();
        let refuse = |call| Order::Refuse { call, refusal: Refusal::Gone };
        self.orders.extend(waiting.into_iter().map(refuse));
        for instance in instances {
            self.stop(instance);
        }
        self.close_if_done(service);
        self.feed(now);
    }

    /// Does what is due: stops what was idle for too long, makes the attempts that had to wait.
    pub(crate) fn tick(&mut self, now: Instant) {
        let idle_for = |slot: &Slot| now.saturating_duration_since(slot.used_at);
        let services = &self.services;
        let mut overdue: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, slot)| slot.is_idle())
            .filter(|(_, slot)| idle_for(slot) >= services[&slot.service].policy.scale.idle)
            .map(|(key, slot)| (slot.used_at, *key))
            .collect();
        overdue.sort_unstable();
        for (_, instance) in overdue {
            if self.may_go(instance) {
                self.stop(instance);
            }
        }
        for service in self.backing_off.iter().copied().collect::<Vec<_>>() {
            self.scale(service, now);
        }
        self.feed(now);
        self.replenish(now);
    }

    /// How long until [`Pool::tick`] has something to do, at the latest.
    pub(crate) fn next_tick(&self, now: Instant) -> Duration {
        let retries = self.backing_off.iter().filter_map(|key| self.services[key].retry_at);
        let next = retries.map(|at| at.saturating_duration_since(now)).min();
        // Idle instances go a little late.
        const COARSE: Duration = Duration::from_secs(1);
        next.map_or(COARSE, |next| next.clamp(Duration::from_millis(1), COARSE))
    }

    /// Whether a service waits for its next attempt to start an instance.
    pub(crate) fn backs_off(&self, service: ServiceKey) -> bool {
        self.backing_off.contains(&service)
    }

    /// Calls that run, and calls that wait, of all services.
    pub(crate) fn calls(&self) -> (u64, u64) {
        let in_flight = self.instances.values().map(|slot| u64::from(slot.in_flight)).sum();
        (in_flight, self.waiting as u64)
    }

    /// Instances that are not on their way out.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    fn new_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn go_on_without(&mut self, service: ServiceKey, now: Instant) {
        // Those that wait for a place come first.
        self.feed(now);
        self.scale(service, now);
        self.close_if_done(service);
    }

    /// Starts what the calls of a service need.
    fn scale(&mut self, service: ServiceKey, now: Instant) {
        self.scale_to(service, 0, now);
    }

    fn scale_to(&mut self, service: ServiceKey, least: u32, now: Instant) {
        let Some(known) = self.services.get(&service) else { return };
        let usable = known.instances.iter().map(|key| &self.instances[key]);
        let in_flight = usable.filter(|slot| slot.is_usable()).map(|slot| slot.in_flight).sum();
        let load = Load { in_flight, waiting: small(known.waiting.len()) };
        let min = if known.is_retired { 0 } else { known.policy.scale.min };
        let wanted = autoscaler::instances(load, &Scale { min, ..known.policy.scale });
        self.grow(service, wanted.max(least), now);
    }

    fn close_if_done(&mut self, service: ServiceKey) {
        let Some(known) = self.services.get(&service) else { return };
        if known.is_retired && known.waiting.is_empty() && known.instances.is_empty() {
            self.services.remove(&service);
            self.backing_off.remove(&service);
            self.starved.retain(|starved| *starved != service);
            self.orders.push(Order::Closed { service });
        }
    }
}
