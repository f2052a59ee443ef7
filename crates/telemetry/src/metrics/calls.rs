use std::{
    array,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use model::{FunctionName, Outcome};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// Counts the calls of one function.
#[derive(Debug)]
pub struct FunctionMetrics {
    /// In the order of [`Outcome::ALL`].
    ended: [AtomicU64; Outcome::ALL.len()],
}

impl Default for FunctionMetrics {
    fn default() -> Self {
        Self { ended: array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl FunctionMetrics {
    /// A call is over.
    pub fn ended(&self, outcome: Outcome) {
        let index = Outcome::ALL.iter().position(|other| *other == outcome);
        if let Some(count) = index.and_then(|index| self.ended.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The outcomes that occurred, and how often.
    fn counts(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let counts = self.ended.iter().map(|count| count.load(Ordering::Relaxed));
        Outcome::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }
}

/// All functions' calls. Sixty bytes a function, instead of a map entry with its own copies of the
/// labels for each outcome.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<BTreeMap<FunctionName, Arc<FunctionMetrics>>>);

impl Calls {
    pub(crate) fn function(&self, name: &FunctionName) -> Arc<FunctionMetrics> {
        self.0
            .lock()
            .expect("no panic while the lock is held")
            .entry(name.clone())
            .or_default()
            .clone()
    }

    pub(crate) fn remove(&self, name: &FunctionName) {
        self.0.lock().expect("no panic while the lock is held").remove(name);
    }
}

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Whoever looks up a function must not wait for thousands of lines to be written.
        let functions = self.0.lock().expect("no panic while the lock is held").clone();
        let help = "Calls that are over";
        let kind = MetricType::Counter;
        let mut encoder = encoder.encode_descriptor("hearth_calls", help, None, kind)?;
        for (name, function) in &functions {
            for (outcome, count) in function.counts() {
                let labels = [("function", name.as_str()), ("outcome", outcome.as_str())];
                ConstCounter::new(count).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
