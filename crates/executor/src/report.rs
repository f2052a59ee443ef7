//! What an executor does at the moment, for people and programs that look.

use std::time::Duration;

use model::InstanceId;
use tokio::time::Instant;

use crate::{
    executor::Executor,
    pool::{PoolLimits, State, Tally},
};

/// What a service does at the moment.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Instances that are being started.
    pub starting: u32,
    /// Instances that run calls.
    pub serving: u32,
    /// Calls that run.
    pub in_flight: u32,
    /// Calls that wait for an instance.
    pub waiting: u32,
    /// How often an instance was started.
    pub cold_starts: u64,
    /// Why its instances do not start or do not last, as long as nothing was served since.
    pub trouble: Option<protocol::CallError>,
}

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It waits to become some function's.
    Spare,
    /// It loads its function's code.
    Starting,
    /// It waits for calls.
    Idle,
    /// Calls run in it.
    Busy,
    /// It finishes what runs in it, or ends.
    Draining,
}

/// An instance.
#[derive(Clone, Debug)]
pub struct InstanceReport {
    /// Its id; none as long as it is being started.
    pub id: Option<InstanceId>,
    /// The function's name; none if it is a spare.
    pub label: Option<String>,
    /// The name of its runtime.
    pub runtime: String,
    /// What it does.
    pub activity: Activity,
    /// Calls that run in it.
    pub in_flight: u32,
    /// Calls that it was given.
    pub calls: u64,
    /// Since it was started.
    pub age: Duration,
    /// Since its last call was over; nothing while one runs.
    pub idle: Duration,
}

impl Load {
    pub(crate) fn new(tally: Tally, cold_starts: u64) -> Self {
        let Tally { starting, serving, in_flight, waiting, trouble } = tally;
        Self { starting, serving, in_flight, waiting, cold_starts, trouble }
    }
}

impl Executor {
    /// All instances, spares included.
    pub fn instances(&self) -> Vec<InstanceReport> {
        let now = Instant::now();
        let spares = self.stocks();
        let spares = spares.iter().flat_map(|stock| {
            let runtime = stock.runtime();
            stock.spares().into_iter().map(move |(id, since)| spare(id, runtime, now - since))
        });
        let mut reports: Vec<_> = spares.collect();
        let state = self.0.lock();
        for (key, hosted) in &state.instances {
            let (Some(seen), Some(known)) =
                (state.pool.see(*key), state.services.get(&hosted.service))
            else {
                continue;
            };
            let activity = match (seen.state, seen.in_flight) {
                (State::Starting, _) => Activity::Starting,
                (State::Serving, 0) => Activity::Idle,
                (State::Serving, _) => Activity::Busy,
                (State::Draining | State::Stopping, _) => Activity::Draining,
            };
            let is_idle = seen.in_flight == 0;
            reports.push(InstanceReport {
                id: hosted.running.as_ref().map(|running| running.id.clone()),
                label: Some(known.revision.label.clone()),
                runtime: known.revision.stock.runtime().to_owned(),
                activity,
                in_flight: seen.in_flight,
                calls: seen.taken,
                age: now.saturating_duration_since(hosted.since),
                idle: if is_idle { now - seen.used_at } else { Duration::ZERO },
            });
        }
        reports.sort_by(|a, b| (&a.label, &a.id).cmp(&(&b.label, &b.id)));
        reports
    }

    /// Calls that run, and calls that wait for an instance.
    pub fn calls(&self) -> (u64, u64) {
        self.0.lock().pool.calls()
    }

    /// The most instances that can be kept although nobody calls, of all functions. The others are
    /// for functions that have none, such as a new deployment.
    pub fn most_kept(&self) -> u32 {
        let PoolLimits { instances, reserve, .. } = self.0.config.limits;
        instances.saturating_sub(reserve.max(1))
    }

    /// The most instances, spares included.
    pub fn max_instances(&self) -> u32 {
        self.0.config.limits.instances
    }
}

fn spare(id: InstanceId, runtime: &str, age: Duration) -> InstanceReport {
    InstanceReport {
        id: Some(id),
        label: None,
        runtime: runtime.to_owned(),
        activity: Activity::Spare,
        in_flight: 0,
        calls: 0,
        age,
        idle: age,
    }
}
