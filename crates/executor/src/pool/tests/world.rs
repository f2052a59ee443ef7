//! An owner of a table that knows what it told and was told, and compares.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Something that happens. Numbers pick one of those it can happen to.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Register { concurrency: u32, min: u32, max: u32, is_single_use: bool },
    Warm(usize),
    Keep { which: usize, min: u32 },
    Call(usize),
    GiveUp(usize),
    Release { which: usize, ended: Ended },
    Started(usize),
    Failed(usize),
    Ended(usize),
    Removed { which: usize, is_crash: bool },
    Retire(usize),
    Close(usize),
    Wait(u64),
}

const LIMITS: PoolLimits =
    PoolLimits { instances: 4, reserve: 1, waiting_per_function: 5, waiting: 8 };
const IDLE: Duration = Duration::from_secs(20);

/// What the owner of a table knows, kept apart from the table.
pub(super) struct World {
    pool: Pool,
    now: Instant,
    calls: CallKey,
    services: BTreeMap<ServiceKey, Policy>,
    retired: BTreeSet<ServiceKey>,
    waiting: BTreeMap<CallKey, ServiceKey>,
    running: Vec<(CallKey, InstanceKey)>,
    starting: Vec<InstanceKey>,
    serving: Vec<InstanceKey>,
    /// Told to stop, or ended.
    leaving: Vec<InstanceKey>,
    /// Their start was given up.
    given_up: Vec<InstanceKey>,
    owner: BTreeMap<InstanceKey, ServiceKey>,
    was_closed: BTreeSet<ServiceKey>,
    /// Starts of the last step: of services that had no instance, and of others.
    starts: [u32; 2],
    /// Services that wanted a place before the last step, in it or after it.
    hungry: BTreeSet<ServiceKey>,
    /// Places that were owed after the last step.
    owed: u32,
}

fn pick<T: Copy>(list: &[T], which: usize) -> Option<T> {
    (!list.is_empty()).then(|| list[which % list.len()])
}

fn take<T: Copy>(list: &mut Vec<T>, which: usize) -> Option<T> {
    (!list.is_empty()).then(|| list.remove(which % list.len()))
}

fn cause() -> protocol::CallError {
    protocol::CallError::Unavailable { why: "planned".into() }
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            pool: Pool::new(LIMITS),
            now: Instant::now(),
            calls: 0,
            services: BTreeMap::new(),
            retired: BTreeSet::new(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            starting: Vec::new(),
            serving: Vec::new(),
            leaving: Vec::new(),
            given_up: Vec::new(),
            owner: BTreeMap::new(),
            was_closed: BTreeSet::new(),
            starts: [0; 2],
            hungry: BTreeSet::new(),
            owed: 0,
        }
    }

    /// Has a step happen, if it can, and compares.
    pub(super) fn take(&mut self, step: &Step) {
        self.starts = [0; 2];
        self.hungry = self.pool.starved.iter().copied().collect();
        match *step {
            Step::Register { concurrency, min, max, is_single_use } => {
                let concurrency = if is_single_use { 1 } else { concurrency };
                let scale = Scale { concurrency, min, max, idle: IDLE };
                self.register(Policy { scale, calls_in_life: is_single_use.then_some(1) });
            }
            Step::Warm(which) => self.with_service(which, |world, service| {
                world.pool.warm(service, 1, world.now);
            }),
            Step::Keep { which, min } => self.with_service(which, |world, service| {
                let policy = world.services.get_mut(&service).expect("it was picked");
                policy.scale.min = min.min(policy.scale.max);
                world.pool.keep(service, policy.scale.min, world.now);
            }),
            Step::Call(which) => self.with_service(which, Self::call),
            Step::GiveUp(which) => self.give_up(which),
            Step::Release { which, ended } => {
                if let Some((_, instance)) = take(&mut self.running, which) {
                    self.pool.release(instance, ended, self.now);
                }
            }
            Step::Started(which) => {
                if let Some(instance) = take(&mut self.starting, which) {
                    self.serving.push(instance);
                    self.pool.started(instance, self.now);
                }
            }
            Step::Failed(which) => {
                if let Some(instance) = take(&mut self.given_up, which) {
                    self.pool.failed(instance, None, self.now);
                } else if let Some(instance) = take(&mut self.starting, which) {
                    self.pool.failed(instance, Some(cause()), self.now);
                }
            }
            Step::Ended(which) => {
                if let Some(instance) = take(&mut self.serving, which) {
                    self.leaving.push(instance);
                    self.pool.ended(instance, self.now);
                }
            }
            Step::Removed { which, is_crash } => {
                if let Some(instance) = take(&mut self.leaving, which) {
                    self.pool.removed(instance, is_crash.then(cause), self.now);
                }
            }
            Step::Retire(which) => self.with_service(which, |world, service| {
                world.retired.insert(service);
                world.pool.retire(service, world.now);
            }),
            Step::Close(which) => self.with_service(which, |world, service| {
                world.retired.insert(service);
                world.pool.close(service, world.now);
                world.obey();
                assert!(!world.waiting.values().any(|other| *other == service));
            }),
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                self.pool.tick(self.now);
            }
        }
        self.obey();
        self.check();
        self.check_reserve();
        self.check_debts();
        if matches!(step, Step::Wait(_)) {
            self.check_shares();
        }
    }

    fn with_service(&mut self, which: usize, act: impl FnOnce(&mut Self, ServiceKey)) {
        let services: Vec<_> = self.services.keys().copied().collect();
        if let Some(service) = pick(&services, which) {
            act(self, service);
        }
    }

    fn register(&mut self, policy: Policy) {
        if self.services.len() < 6 {
            let key = self.pool.register(policy);
            self.services.insert(key, policy);
        }
    }

    fn call(&mut self, service: ServiceKey) {
        self.calls += 1;
        let call = self.calls;
        // Orders about it may come with its admission.
        self.waiting.insert(call, service);
        match self.pool.admit(service, call, self.now) {
            Admission::Granted(instance) => {
                self.waiting.remove(&call);
                self.run(call, service, instance);
            }
            Admission::Waiting => {}
            Admission::Refused(_) => _ = self.waiting.remove(&call),
        }
    }

    fn give_up(&mut self, which: usize) {
        let waiting: Vec<_> = self.waiting.iter().map(|(call, of)| (*call, *of)).collect();
        if let Some((call, service)) = pick(&waiting, which) {
            self.waiting.remove(&call);
            self.pool.give_up(service, call);
        }
    }

    fn run(&mut self, call: CallKey, service: ServiceKey, instance: InstanceKey) {
        assert_eq!(self.owner[&instance], service, "an instance runs its own function's calls");
        assert!(self.serving.contains(&instance), "a call is given to an instance that serves");
        self.running.push((call, instance));
        let at_once = self.running.iter().filter(|(_, other)| *other == instance).count();
        let concurrency = self.services[&service].scale.concurrency;
        assert!(at_once <= concurrency as usize, "no more calls at once than allowed");
    }

    fn obey(&mut self) {
        for order in self.pool.take_orders() {
            match order {
                Order::Start { service, instance } => {
                    let earlier = self.owner.insert(instance, service);
                    assert_eq!(earlier, None, "keys are not used twice");
                    let has_others = self.live_of(service) > 0;
                    self.starts[usize::from(has_others)] += 1;
                    self.starting.push(instance);
                    self.hungry.insert(service);
                }
                Order::Stop { instance } => self.stop(instance),
                Order::Grant { call, instance } => {
                    let service = self.waiting.remove(&call).expect("a call is answered once");
                    self.run(call, service, instance);
                }
                Order::Refuse { call, .. } => {
                    self.waiting.remove(&call).expect("a call is answered once");
                }
                Order::Closed { service } => {
                    assert!(self.retired.contains(&service), "only what was retired is closed");
                    assert!(self.was_closed.insert(service), "once");
                    self.services.remove(&service).expect("it was there");
                }
            }
        }
    }

    fn stop(&mut self, instance: InstanceKey) {
        if let Some(at) = self.starting.iter().position(|other| *other == instance) {
            self.given_up.push(self.starting.remove(at));
            return;
        }
        assert!(self.serving.contains(&instance), "only what serves is stopped, once");
        let is_busy = self.running.iter().any(|(_, other)| *other == instance);
        let is_closed = self.retired.contains(&self.owner[&instance]);
        assert!(!is_busy || is_closed, "a running call is never cut off for others");
        self.serving.retain(|other| *other != instance);
        self.leaving.push(instance);
    }

    /// What must hold at any time.
    fn check(&self) {
        let live = self.starting.len() + self.serving.len();
        let leaving = self.leaving.len() + self.given_up.len();
        assert_eq!(self.pool.live as usize, live);
        assert_eq!(self.pool.stopping as usize, leaving);
        assert!(live <= LIMITS.instances as usize, "the host's limit");
        assert!(live + leaving <= LIMITS.instances as usize + 1, "those on their way out count");
        assert_eq!(self.pool.waiting, self.waiting.len(), "no call is lost");
        assert!(self.waiting.len() <= LIMITS.waiting);
        for (service, policy) in &self.services {
            self.check_service(*service, &policy.scale);
        }
    }

    fn check_service(&self, service: ServiceKey, scale: &Scale) {
        let waiting = self.waiting.values().filter(|other| **other == service).count();
        assert!(waiting <= LIMITS.waiting_per_function);
        let own = |list: &[InstanceKey]| {
            list.iter().copied().filter(|key| self.owner[key] == service).collect::<Vec<_>>()
        };
        let serving = own(&self.serving);
        let running = own(&self.starting).len() + serving.len();
        assert!(running <= scale.max as usize, "the function's limit");
        let has_room = |instance: &InstanceKey| {
            let calls = self.running.iter().filter(|(_, other)| other == instance).count();
            let takes_calls = self.pool.instances[instance].state == State::Serving;
            takes_calls && calls < scale.concurrency as usize
        };
        assert!(waiting == 0 || !serving.iter().any(has_room), "nobody waits at an open door");
    }

    fn live_of(&self, service: ServiceKey) -> u32 {
        let live = self.starting.iter().chain(&self.serving);
        small(live.filter(|key| self.owner[key] == service).count())
    }

    /// Places that are free, and those that could be at once.
    fn available(&self) -> u32 {
        let is_idle = |key: &&InstanceKey| {
            let is_busy = self.running.iter().any(|(_, other)| other == *key);
            !is_busy && self.pool.instances[*key].state == State::Serving
        };
        let evictable = self.services.iter().map(|(service, policy)| {
            let own = self.serving.iter().filter(|key| self.owner[key] == *service);
            let idle = small(own.filter(is_idle).count());
            let instances = self.pool.instances.values();
            let usable = instances.filter(|slot| slot.service == *service && slot.is_usable());
            let least = if self.retired.contains(service) { 0 } else { policy.scale.min };
            idle.min(small(usable.count()).saturating_sub(least))
        });
        let free = LIMITS.instances - small(self.starting.len() + self.serving.len());
        free + evictable.sum::<u32>()
    }

    /// The last places are for services that have none, and they get them at once.
    fn check_reserve(&self) {
        let [first, others] = self.starts;
        let is_kept = self.available() + first >= LIMITS.reserve;
        assert!(others == 0 || is_kept, "nobody grows into the places that are kept for others");
        let on_the_way_out = self.leaving.len() + self.given_up.len();
        let live = self.starting.len() + self.serving.len();
        if live + on_the_way_out > LIMITS.instances as usize {
            return;
        }
        for service in self.waiting.values() {
            let known = &self.pool.services[service];
            // How an instance that has just ended did so is known only once it is gone.
            if known.instances.is_empty() && !known.must_wait(self.now) {
                assert_eq!(self.available(), 0, "a first place is given while there is one");
            }
        }
    }

    /// Places that are owed and not yet free.
    pub(super) fn owed(&self) -> u32 {
        small(self.pool.instances.values().filter(|slot| slot.owes()).count())
    }

    /// A place becomes owed only while fewer are owed than services want one, or than are kept. It
    /// stays owed when those services are gone, so the number is compared only when it grows.
    fn check_debts(&mut self) {
        self.hungry.extend(&self.pool.starved);
        let owed = self.owed();
        let needed = small(self.hungry.len()).max(LIMITS.reserve);
        let before = std::mem::replace(&mut self.owed, owed);
        assert!(owed <= before.max(needed), "{owed} places are owed, {needed} are needed");
    }

    /// Who has two places more than somebody who waits for one owes one.
    fn check_shares(&self) {
        let owed = self.owed();
        for service in &self.pool.starved {
            let own = self.live_of(*service);
            let may_owe = |(other, policy): (&ServiceKey, &Policy)| {
                let instances = self.pool.instances.values();
                let own_instances = instances.filter(|slot| slot.service == *other);
                let of =
                    |is: &dyn Fn(&&Slot) -> bool| small(own_instances.clone().filter(is).count());
                let least = if self.retired.contains(other) { 0 } else { policy.scale.min };
                let is_serving = of(&|slot| slot.state == State::Serving) > 0;
                is_serving
                    && of(&|slot| slot.is_usable()) > least
                    && of(&|slot| slot.is_live()) > own + 1
            };
            let live = self.starting.len() + self.serving.len();
            let on_the_way_out = self.leaving.len() + self.given_up.len();
            let is_full = live + on_the_way_out == LIMITS.instances as usize;
            if is_full && self.services.iter().any(may_owe) {
                assert!(owed > 0, "{service} has {own} places, somebody has more, nobody owes");
            }
        }
    }

    /// Calls wait only as long as something is under way for them, or others hold the room.
    pub(super) fn check_hope(&self) {
        for (call, service) in &self.waiting {
            let known = &self.pool.services[service];
            let is_coming = !known.instances.is_empty();
            let is_due = known.retry_at.is_some_and(|at| at > self.now)
                && self.pool.backing_off.contains(service);
            assert!(is_coming || is_due || known.is_starved, "call {call} waits for nothing");
        }
    }

    pub(super) fn retire_all(&mut self) {
        for service in self.services.keys().copied().collect::<Vec<_>>() {
            // Those that were retired before may be gone by now.
            if let Some(which) = self.services.keys().position(|other| *other == service) {
                self.take(&Step::Retire(which));
            }
        }
    }

    /// Everything under way comes to its end.
    pub(super) fn finish(&mut self) {
        for _ in 0..1000 {
            self.take(&Step::Release { which: 0, ended: Ended::Served });
            self.take(&Step::Started(0));
            self.take(&Step::Failed(0));
            self.take(&Step::Removed { which: 0, is_crash: false });
            self.take(&Step::Wait(31_000));
            let under_way = self.running.len() + self.starting.len() + self.leaving.len();
            if under_way + self.waiting.len() + self.given_up.len() == 0 {
                return;
            }
        }
        panic!("calls still wait: {:?}", self.waiting);
    }

    /// Nothing is left, anywhere.
    pub(super) fn check_empty(&self) {
        let Pool { services, instances, live, stopping, waiting, starved, backing_off, .. } =
            &self.pool;
        assert!(self.services.is_empty(), "a retired service goes");
        assert!(services.is_empty() && instances.is_empty());
        assert!(starved.is_empty() && backing_off.is_empty());
        assert_eq!((*live, *stopping, *waiting), (0, 0, 0));
    }
}
