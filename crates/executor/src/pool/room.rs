//! Who gets the places for instances, and who gives them up.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{InstanceKey, Order, Pool, ServiceKey, Slot, State, small};

/// How long places for functions that have none must be missing before somebody else owes them.
const SHORTAGE: Duration = Duration::from_secs(1);

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
            // One place at a time, as long as others want one, too.
            if !self.starved.is_empty() && self.usable(service) < wanted {
                return self.starve(service);
            }
        }
    }

    /// Gives services that found no room what has become free: one place at a time, to the one that
    /// has fewest; of equals, to the one that has waited longest.
    pub(super) fn feed(&mut self, now: Instant) {
        while let Some(service) = self.take_hungriest() {
            let before = self.places(service);
            self.scale(service, now);
            // If it is starved again, it is at the end now.
            let is_starved = self.starved.back() == Some(&service);
            if is_starved && self.places(service) == before {
                // It stays first of its like, and nobody with more finds room either.
                self.starved.rotate_right(1);
                return;
            }
        }
    }

    /// Keeps some places for functions that have none: if too few are left, and nobody owes one
    /// already, then whoever has most owes one.
    pub(super) fn replenish(&mut self, now: Instant) {
        let free = self.limits.instances - self.live;
        let is_short = free + self.evictable() + self.owed() < self.limits.reserve;
        if !is_short {
            self.short_since = None;
            return;
        }
        // A shortage that passes by itself is not worth an instance.
        let since = *self.short_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= SHORTAGE {
            self.borrow(1);
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
        self.surplus(self.instances[&instance].service) > 0
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
        let free = self.limits.instances - self.live;
        // The last places are for those that have none.
        let reserve = self.limits.reserve;
        let may_have_one =
            free > reserve || self.places(service) == 0 || free + self.evictable() > reserve;
        if may_have_one && free > 0 {
            return true;
        }
        if may_have_one && let Some(victim) = self.least_recently_used(service) {
            self.stop(victim);
            return true;
        }
        self.share(service);
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

    /// How many idle instances could make room for others.
    fn evictable(&self) -> u32 {
        let mut idle = HashMap::<ServiceKey, u32>::new();
        for slot in self.instances.values().filter(|slot| slot.is_idle()) {
            *idle.entry(slot.service).or_default() += 1;
        }
        idle.into_iter().map(|(service, idle)| idle.min(self.surplus(service))).sum()
    }

    /// How many of its usable instances a service does not want at the least.
    fn surplus(&self, service: ServiceKey) -> u32 {
        let known = &self.services[&service];
        let min = if known.is_retired { 0 } else { known.policy.scale.min };
        self.usable(service).saturating_sub(min)
    }

    /// Whether no place can come free, since every instance is one that its service wants at the
    /// least.
    pub(super) fn is_all_kept(&self) -> bool {
        let is_kept = |slot: &Slot| !slot.is_live() || slot.is_usable();
        self.live >= self.limits.instances && self.instances.values().all(is_kept) && {
            let live = self.instances.values().filter(|slot| slot.is_live());
            let services: HashSet<_> = live.map(|slot| slot.service).collect();
            services.into_iter().all(|service| self.surplus(service) == 0)
        }
    }

    /// A service that wants a place and finds none is owed one by whoever has two more or more. It
    /// stays owed when that service is gone: whoever comes next waits for it instead of for another.
    fn share(&mut self, service: ServiceKey) {
        // One for each that waits; the service itself may not be noted yet.
        let is_noted = self.services.get(&service).is_some_and(|known| known.is_starved);
        let waiting = small(self.starved.len()) + u32::from(!is_noted);
        if self.owed() < waiting {
            self.borrow(self.places(service) + 1);
        }
    }

    /// The service with the most places, if it has more than `modest`, owes one of them: an instance
    /// takes no more calls, and ends with its last or in the stead of another that is idle sooner.
    /// A running call is never cut off.
    fn borrow(&mut self, modest: u32) {
        let mut holdings = HashMap::<ServiceKey, u32>::new();
        for slot in self.instances.values().filter(|slot| slot.is_live() && !slot.is_owed) {
            *holdings.entry(slot.service).or_default() += 1;
        }
        holdings.retain(|service, count| *count > modest && self.surplus(*service) > 0);
        let serving = self.instances.iter().filter(|(_, slot)| slot.state == State::Serving);
        let chosen = serving
            .filter_map(|(key, slot)| {
                let count = *holdings.get(&slot.service)?;
                Some((count, Reverse(slot.in_flight), *key))
            })
            .max();
        let Some((_, Reverse(in_flight), instance)) = chosen else { return };
        if in_flight == 0 {
            self.stop(instance);
        } else if let Some(slot) = self.instances.get_mut(&instance) {
            (slot.state, slot.is_owed) = (State::Draining, true);
        }
    }

    /// An instance that has become idle pays what its service owes, and the one that was to pay
    /// goes on.
    pub(super) fn pay_with(&mut self, instance: InstanceKey, now: Instant) {
        let Some(slot) = self.instances.get(&instance) else { return };
        let Some(known) = self.services.get(&slot.service) else { return };
        if !slot.is_idle() {
            return;
        }
        let owed = known.instances.iter().copied().find(|key| self.instances[key].owes());
        if let Some(owed) = owed.and_then(|key| self.instances.get_mut(&key)) {
            (owed.state, owed.is_owed) = (State::Serving, false);
            self.stop(instance);
            // Before its own service takes the place again.
            self.feed(now);
        }
    }

    /// Instances that a service has, whatever they do, without those that end.
    pub(super) fn places(&self, service: ServiceKey) -> u32 {
        self.count(service, Slot::is_live)
    }

    /// Places that are owed and not yet free.
    fn owed(&self) -> u32 {
        small(self.instances.values().filter(|slot| slot.owes()).count())
    }

    /// The starved service that has the fewest places, longest waiting first.
    fn take_hungriest(&mut self) -> Option<ServiceKey> {
        let mut hungriest = None;
        for (position, service) in self.starved.iter().enumerate() {
            let places = self.places(*service);
            if hungriest.is_none_or(|(fewest, _)| places < fewest) {
                hungriest = Some((places, position));
            }
            if places == 0 {
                break;
            }
        }
        let service = self.starved.remove(hungriest?.1)?;
        if let Some(known) = self.services.get_mut(&service) {
            known.is_starved = false;
        }
        Some(service)
    }

    fn starve(&mut self, service: ServiceKey) {
        let Some(known) = self.services.get_mut(&service) else { return };
        if !known.is_starved {
            known.is_starved = true;
            self.starved.push_back(service);
        }
    }
}
