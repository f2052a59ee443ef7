//! Calls: who comes in, who waits, who is over.

use tokio::time::Instant;

use super::{
    Admission, CallKey, Ended, InstanceKey, Order, Pool, PoolLimits, Refusal, ServiceKey, Slot,
    State,
};

impl Pool {
    /// A call comes.
    pub(crate) fn admit(&mut self, service: ServiceKey, call: CallKey, now: Instant) -> Admission {
        if let Some(instance) = self.with_room(service) {
            self.give(instance, now);
            return Admission::Granted(instance);
        }
        if let Some(refusal) = self.refusal(service, now) {
            return Admission::Refused(refusal);
        }
        if self.waiting >= self.limits.waiting {
            self.displace();
        }
        self.waiting += 1;
        if let Some(known) = self.services.get_mut(&service) {
            known.waiting.push_back(call);
        }
        self.scale(service, now);
        Admission::Waiting
    }

    /// A call does not wait any more.
    pub(crate) fn give_up(&mut self, service: ServiceKey, call: CallKey) {
        let Some(known) = self.services.get_mut(&service) else { return };
        let before = known.waiting.len();
        known.waiting.retain(|waiting| *waiting != call);
        self.waiting -= before - known.waiting.len();
        self.close_if_done(service);
    }

    /// A call is over: its reply has been passed on, or it was given up.
    pub(crate) fn release(&mut self, instance: InstanceKey, ended: Ended, now: Instant) {
        let Some(slot) = self.instances.get_mut(&instance) else { return };
        slot.in_flight = slot.in_flight.saturating_sub(1);
        slot.used_at = now;
        match ended {
            Ended::Served => slot.served += 1,
            Ended::Abandoned => slot.abandoned_at = Some(now),
            Ended::Lost => {}
        }
        let (service, state, in_flight) = (slot.service, slot.state, slot.in_flight);
        if ended == Ended::Served
            && let Some(known) = self.services.get_mut(&service)
        {
            known.last_failure = None;
            // Serving is not enough: the instance may end right after.
            if slot.has_lasted(now) {
                known.forgive(slot.since);
            }
        }
        match state {
            State::Serving => {
                self.pay_with(instance, now);
                self.grant_waiting(service, now);
                self.settle(instance, now);
            }
            State::Draining if in_flight == 0 => {
                self.stop(instance);
                self.feed(now);
                self.scale(service, now);
            }
            State::Draining | State::Starting | State::Stopping => {}
        }
        if ended == Ended::Served && self.backing_off.contains(&service) {
            self.scale(service, now);
        }
    }

    /// A place was given back without having been used for a call.
    pub(crate) fn give_back(&mut self, instance: InstanceKey, now: Instant) {
        if let Some(slot) = self.instances.get_mut(&instance) {
            slot.taken = slot.taken.saturating_sub(1);
        }
        self.release(instance, Ended::Lost, now);
    }

    /// Gives the calls that wait what room there is.
    pub(super) fn grant_waiting(&mut self, service: ServiceKey, now: Instant) {
        let Some(known) = self.services.get(&service) else { return };
        if known.waiting.is_empty() {
            return;
        }
        while let Some(instance) = self.with_room(service) {
            let known = self.services.get_mut(&service);
            let Some(call) = known.and_then(|known| known.waiting.pop_front()) else { return };
            self.waiting -= 1;
            self.give(instance, now);
            self.orders.push(Order::Grant { call, instance });
        }
        // Some of them may have been the last in an instance's life.
        self.scale(service, now);
    }

    /// Refuses calls that waited for the start that has just failed, and for no other.
    pub(super) fn refuse_hopeless(&mut self, service: ServiceKey, cause: &protocol::CallError) {
        let Some(known) = self.services.get_mut(&service) else { return };
        if known.instances.iter().any(|key| self.instances[key].is_usable()) {
            return;
        }
        self.waiting -= known.waiting.len();
        let refuse = |call| Order::Refuse { call, refusal: Refusal::Failed(cause.clone()) };
        self.orders.extend(known.waiting.drain(..).map(refuse));
    }

    /// The serving instance with the most room; of equals the eldest, so that the youngest can go.
    fn with_room(&self, service: ServiceKey) -> Option<InstanceKey> {
        let known = self.services.get(&service)?;
        let concurrency = known.policy.scale.concurrency.max(1);
        let load = |key: &InstanceKey| {
            let slot = &self.instances[key];
            let has_room = slot.state == State::Serving && slot.in_flight < concurrency;
            has_room.then_some((slot.in_flight, *key))
        };
        known.instances.iter().filter_map(load).min().map(|(_, key)| key)
    }

    /// Notes that an instance has one more call.
    fn give(&mut self, instance: InstanceKey, now: Instant) {
        let Some(slot) = self.instances.get_mut(&instance) else { return };
        slot.in_flight += 1;
        slot.taken += 1;
        slot.used_at = now;
        let life = self.services.get(&slot.service).and_then(|known| known.policy.calls_in_life);
        if life.is_some_and(|life| slot.taken >= life) {
            slot.state = State::Draining;
        }
    }

    /// Why a call that found no instance must not wait for one.
    fn refusal(&self, service: ServiceKey, now: Instant) -> Option<Refusal> {
        let Some(known) = self.services.get(&service) else { return Some(Refusal::Gone) };
        let has_hope = known.instances.iter().any(|key| Slot::is_usable(&self.instances[key]));
        if !has_hope
            && known.is_hopeless(now)
            && let (Some(at), Some(cause)) = (known.retry_at, &known.last_failure)
        {
            let retry_after = at.saturating_duration_since(now);
            return Some(Refusal::BackingOff { cause: cause.clone(), retry_after });
        }
        if self.places(service) == 0 && self.is_all_kept() {
            return Some(Refusal::AllKept);
        }
        let PoolLimits { waiting_per_function, waiting, .. } = self.limits;
        let own = known.waiting.len();
        let is_full = own >= waiting_per_function
            || (self.waiting >= waiting
                && self.longest_queue().is_none_or(|(most, _)| most <= own + 1));
        is_full.then_some(Refusal::Full { waiting: own })
    }

    /// The service with the most calls that wait.
    fn longest_queue(&self) -> Option<(usize, ServiceKey)> {
        self.services.iter().map(|(key, known)| (known.waiting.len(), *key)).max()
    }

    /// Refuses the call that came last of those of the service with the most that wait.
    fn displace(&mut self) {
        let Some((waiting, service)) = self.longest_queue() else { return };
        let known = self.services.get_mut(&service);
        if let Some(call) = known.and_then(|known| known.waiting.pop_back()) {
            self.waiting -= 1;
            self.orders.push(Order::Refuse { call, refusal: Refusal::Full { waiting } });
        }
    }
}
