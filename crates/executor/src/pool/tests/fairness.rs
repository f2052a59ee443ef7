//! A busy host over time: calls come without end, last at most so long, and everybody has a turn.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A function that others could starve, or that could starve others.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Its calls at once.
    pub(super) calls: u32,
    pub(super) concurrency: u32,
    /// When it begins.
    pub(super) from: u64,
}

/// How long a start takes, and until an instance that was stopped is gone.
const START: u64 = 20;
const END: u64 = 30;

/// A host where time passes, in milliseconds.
pub(super) struct Town {
    pool: Pool,
    limits: PoolLimits,
    began: Instant,
    millis: u64,
    /// What happens next, by its time.
    events: BTreeSet<(u64, Event)>,
    callers: BTreeMap<ServiceKey, Caller>,
    owner: BTreeMap<InstanceKey, ServiceKey>,
    /// Since when each service that has no place waits for one.
    hungry: BTreeMap<ServiceKey, u64>,
    waiting: BTreeMap<CallKey, ServiceKey>,
    calls: CallKey,
    /// How long the next calls take.
    durations: Vec<u64>,
    longest_wait: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call(ServiceKey),
    Started(InstanceKey),
    Over(InstanceKey, CallKey),
    Gone(InstanceKey),
    Tick,
}

impl Town {
    pub(super) fn new(limits: PoolLimits, callers: &[Caller], durations: Vec<u64>) -> Self {
        let mut town = Self {
            pool: Pool::new(limits),
            limits,
            began: Instant::now(),
            millis: 0,
            events: [(0, Event::Tick)].into(),
            callers: BTreeMap::new(),
            owner: BTreeMap::new(),
            hungry: BTreeMap::new(),
            waiting: BTreeMap::new(),
            calls: 0,
            durations,
            longest_wait: 0,
        };
        for caller in callers {
            let idle = Duration::from_secs(600);
            let scale =
                Scale { concurrency: caller.concurrency, min: 0, max: limits.instances, idle };
            let service = town.pool.register(Policy { scale, calls_in_life: None });
            town.callers.insert(service, caller.clone());
            for _ in 0..caller.calls {
                town.calls += 1;
                // Keys order events of the same time.
                town.events.insert((caller.from + town.calls % 7, Event::Call(service)));
            }
        }
        town
    }

    /// Lets so many milliseconds pass. Returns the longest that a function without a place waited
    /// for one, until its instance was being started.
    pub(super) fn live(mut self, until: u64) -> u64 {
        while let Some((at, event)) = self.events.pop_first() {
            if at > until {
                break;
            }
            self.millis = at;
            self.happen(event);
            self.obey();
            self.look();
        }
        self.longest_wait
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.millis)
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.events.insert((self.millis + millis, event));
    }

    fn happen(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Call(service) => {
                self.calls += 1;
                let call = self.calls;
                match self.pool.admit(service, call, now) {
                    Admission::Granted(instance) => self.run(call, instance),
                    Admission::Waiting => _ = self.waiting.insert(call, service),
                    Admission::Refused(refusal) => panic!("{refusal:?}"),
                }
            }
            Event::Started(instance) => self.pool.started(instance, now),
            Event::Over(instance, call) => {
                self.pool.release(instance, Ended::Served, now);
                let service = self.owner[&instance];
                // Whoever called calls again.
                self.after(call % 3, Event::Call(service));
            }
            Event::Gone(instance) => self.pool.removed(instance, None, now),
            Event::Tick => {
                self.pool.tick(now);
                self.after(1000, Event::Tick);
            }
        }
    }

    fn obey(&mut self) {
        for order in self.pool.take_orders() {
            match order {
                Order::Start { service, instance } => {
                    self.owner.insert(instance, service);
                    self.after(START, Event::Started(instance));
                }
                Order::Stop { instance } => self.after(END, Event::Gone(instance)),
                Order::Grant { call, instance } => {
                    self.waiting.remove(&call).expect("it waited");
                    self.run(call, instance);
                }
                Order::Refuse { .. } | Order::Closed { .. } => panic!("{order:?}"),
            }
        }
    }

    fn run(&mut self, call: CallKey, instance: InstanceKey) {
        let takes = self.durations[usize::try_from(call).unwrap_or(0) % self.durations.len()];
        self.after(takes, Event::Over(instance, call));
    }

    /// Notes who waits without a place, and for how long.
    fn look(&mut self) {
        assert!(self.pool.live <= self.limits.instances);
        for service in self.callers.keys() {
            let waits = self.waiting.values().any(|other| other == service);
            let has_place = self.pool.places(*service) > 0;
            if !waits || has_place {
                if let Some(since) = self.hungry.remove(service) {
                    self.longest_wait = self.longest_wait.max(self.millis - since);
                }
            } else {
                self.hungry.entry(*service).or_insert(self.millis);
            }
        }
        let still = self.hungry.values().map(|since| self.millis - since).max();
        self.longest_wait = self.longest_wait.max(still.unwrap_or(0));
    }
}
