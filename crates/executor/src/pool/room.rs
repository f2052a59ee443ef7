//! Who gets the places for instances, and who gives them up.

use tokio::time::Instant;

use super::{InstanceKey, Order, Pool, ServiceKey, Slot, State, small};

impl Pool {
    /// Starts instances until a service has `wanted`, as far as there is room and it is time.
    pub(super) fn grow(&mut self, service: ServiceKey, wanted: u32, now: Instant) {
        let Some(known) = self.services.get(&service) else { return };
        // Those that drain still run, so they count among the most.
        let draining = self.count(service, |slot| slot.state == State::Draining);
        let wanted = wanted.min(known.policy.scale.max.saturating_sub(draining));
        if self.usable(service) >= wanted {
            self.backing_off.remove(&service);
            return;
        }
        if known.must_wait(now) {
            self.backing_off.insert(service);
            return;
        }
        self.backing_off.remove(&service);
        while self.usable(service) < wanted {
            if !self.make_room(service) {
                return self.starve(service);
            }
            self.start(service, now);
        }
    }

    /// Gives services that found no room what has become free, longest waiting first.
    pub(super) fn feed(&mut self, now: Instant) {
        for _ in 0..self.starved.len() {
            let Some(service) = self.starved.pop_front() else { return };
            if let Some(known) = self.services.get_mut(&service) {
                known.is_starved = false;
            }
            self.scale(service, now);
            // If it is starved again, it is at the end now; it goes back to where it was, and
            // nobody behind it finds room either.
            if self.starved.back() == Some(&service) {
                self.starved.rotate_right(1);
                return;
            }
        }
    }

    /// An instance may have become idle: it ends if its service does, or if others need its place.
    pub(super) fn settle(&mut self, instance: InstanceKey, now: Instant) {
        let Some(slot) = self.instances.get(&instance) else { return };
        if !slot.is_idle() {
            return;
        }
        let service = slot.service;
        if self.services.get(&service).is_some_and(|known| known.is_retired) {
            self.stop(instance);
            self.close_if_done(service);
        }
        self.feed(now);
    }

    /// Ends an instance. Its place is free from now on.
    pub(super) fn stop(&mut self, instance: InstanceKey) {
        let Some(slot) = self.instances.get_mut(&instance) else { return };
        if slot.is_live() {
            slot.state = State::Stopping;
            self.live -= 1;
            self.stopping += 1;
            self.orders.push(Order::Stop { instance });
        }
    }

    /// Whether an idle instance is more than its service wants at the least.
    pub(super) fn may_go(&self, instance: InstanceKey) -> bool {
        let service = self.instances[&instance].service;
        let known = &self.services[&service];
        known.is_retired || self.usable(service) > known.policy.scale.min
    }

    /// Takes an instance out of the table.
    pub(super) fn forget(&mut self, instance: InstanceKey) -> Option<Slot> {
        let slot = self.instances.remove(&instance)?;
        let place = if slot.is_live() { &mut self.live } else { &mut self.stopping };
        *place -= 1;
        if let Some(known) = self.services.get_mut(&slot.service) {
            known.instances.retain(|key| *key != instance);
        }
        Some(slot)
    }

    fn usable(&self, service: ServiceKey) -> u32 {
        self.count(service, Slot::is_usable)
    }

    fn count(&self, service: ServiceKey, is_counted: impl Fn(&Slot) -> bool) -> u32 {
        let known = self.services.get(&service);
        let instances = known.into_iter().flat_map(|known| &known.instances);
        small(instances.filter(|key| is_counted(&self.instances[*key])).count())
    }

    fn start(&mut self, service: ServiceKey, now: Instant) {
        let instance = self.new_key();
        self.instances.insert(instance, Slot::new(service, now));
        self.live += 1;
        if let Some(known) = self.services.get_mut(&service) {
            known.instances.push(instance);
        }
        self.orders.push(Order::Start { service, instance });
    }

    /// Whether one more instance may be started now, if need be in the place of an idle one.
    fn make_room(&mut self, service: ServiceKey) -> bool {
        // Those that are on their way out still use memory: only so many at once.
        let slack = self.limits.instances.div_ceil(4);
        if self.live + self.stopping >= self.limits.instances + slack {
            return false;
        }
        if self.live < self.limits.instances {
            return true;
        }
        if let Some(victim) = self.least_recently_used(service) {
            self.stop(victim);
            return true;
        }
        if self.usable(service) == 0 {
            self.share();
        }
        false
    }

    /// The idle instance of another service that was not used for the longest time.
    fn least_recently_used(&self, but_of: ServiceKey) -> Option<InstanceKey> {
        self.instances
            .iter()
            .filter(|(key, slot)| slot.is_idle() && slot.service != but_of && self.may_go(**key))
            .min_by_key(|(key, slot)| (slot.used_at, **key))
            .map(|(key, _)| *key)
    }

    /// A service without any instance is owed a place by the one that has most, once what runs in
    /// it is over.
    fn share(&mut self) {
        let is_draining = |slot: &&Slot| slot.state == State::Draining;
        if self.instances.values().filter(is_draining).count() > self.starved.len() {
            return;
        }
        let serving = self.instances.iter().filter(|(_, slot)| slot.state == State::Serving);
        let richest = serving
            .map(|(key, slot)| (self.usable(slot.service), *key))
            .filter(|(count, key)| *count > 1 && self.may_go(*key))
            .max();
        if let Some((_, instance)) = richest
            && let Some(slot) = self.instances.get_mut(&instance)
        {
            slot.state = State::Draining;
        }
    }

    fn starve(&mut self, service: ServiceKey) {
        let Some(known) = self.services.get_mut(&service) else { return };
        if !known.is_starved {
            known.is_starved = true;
            self.starved.push_back(service);
        }
    }
}
