mod calls;
mod histogram;

use std::{
    array, fmt,
    sync::{Arc, Mutex},
};

use model::{FunctionName, Phases};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        info::Info,
    },
    registry::Registry,
};

use calls::Calls;
pub use calls::FunctionMetrics;
use histogram::Durations;

use crate::process;

/// The media type of [`Metrics::render`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The daemon's metrics, as `docs/operations/metrics.md` explains them.
pub struct Metrics {
    calls: Arc<Calls>,
    phases: Arc<PhaseDurations>,
    cold_starts: Family<[(&'static str, String); 2], Counter>,
    levels: Arc<Mutex<Levels>>,
    registry: Registry,
}

/// What there is at the moment; whoever renders metrics knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Instances by what they do.
    pub instances: Vec<(&'static str, u64)>,
    /// Spares by runtime.
    pub spares: Vec<(String, u64)>,
    /// Functions that exist.
    pub functions: u64,
    /// Calls that run.
    pub calls_in_flight: u64,
    /// Calls that wait for an instance.
    pub calls_waiting: u64,
    /// Lines of functions' logs that were left out since the daemon was started.
    pub log_lines_dropped: u64,
}

/// How an instance came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColdStart {
    /// A spare was there.
    Spare,
    /// It was launched for the call.
    Launch,
}

impl ColdStart {
    fn as_str(self) -> &'static str {
        match self {
            Self::Spare => "spare",
            Self::Launch => "launch",
        }
    }
}

impl Metrics {
    /// Metrics of a daemon of this version, all at zero.
    pub fn new(version: &'static str) -> Self {
        let (calls, phases) = (Arc::<Calls>::default(), Arc::<PhaseDurations>::default());
        let levels = Arc::new(Mutex::new(Levels::default()));
        let cold_starts = Family::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(calls.clone()));
        registry.register_collector(Box::new(phases.clone()));
        registry.register("hearth_cold_starts", "Instances started", cold_starts.clone());
        registry.register("hearth_build", "The daemon", Info::new([("version", version)]));
        registry.register_collector(Box::new(Gauges(levels.clone())));
        Self { calls, phases, cold_starts, levels, registry }
    }

    /// The counters of a function; at zero the first time.
    pub fn function(&self, name: &FunctionName) -> Arc<FunctionMetrics> {
        self.calls.function(name)
    }

    /// Forgets the counters of a function. What is still counted on them is never seen.
    pub fn remove_function(&self, name: &FunctionName) {
        self.calls.remove(name);
    }

    /// Notes where the time of a call went, in each phase that it went through.
    pub fn phases(&self, phases: &Phases) {
        for (histogram, duration) in self.phases.0.iter().zip(phases.durations()) {
            if !duration.is_zero() {
                histogram.observe(duration);
            }
        }
    }

    /// An instance of a runtime was started.
    pub fn cold_start(&self, runtime: &str, kind: ColdStart) {
        let labels = [("runtime", runtime.to_owned()), ("kind", kind.as_str().to_owned())];
        self.cold_starts.get_or_create_owned(&labels).inc();
    }

    /// All metrics, in the OpenMetrics text format. Reads two files of the kernel's.
    pub fn render(&self, levels: Levels) -> String {
        *self.levels.lock().expect("no panic while the lock is held") = levels;
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("a string takes everything");
        page
    }
}

/// In the order of [`Phases::NAMES`].
#[derive(Debug)]
struct PhaseDurations([Durations; Phases::NAMES.len()]);

impl Default for PhaseDurations {
    fn default() -> Self {
        Self(array::from_fn(|_| Durations::default()))
    }
}

impl Collector for PhaseDurations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "hearth_call_phase_seconds";
        let help = "Where the time of calls went";
        let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (phase, durations) in Phases::NAMES.iter().zip(&self.0) {
            durations.encode(encoder.encode_family(&[("phase", *phase)])?)?;
        }
        Ok(())
    }
}

/// What is only known when somebody asks.
#[derive(Debug)]
struct Gauges(Arc<Mutex<Levels>>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let levels = self.0.lock().expect("no panic while the lock is held").clone();
        family(&mut encoder, "hearth_instances", "Instances", "state", &levels.instances)?;
        family(
            &mut encoder,
            "hearth_spares",
            "Instances without function",
            "runtime",
            &levels.spares,
        )?;
        for (name, help, value) in [
            ("hearth_functions", "Functions that exist", Some(levels.functions)),
            ("hearth_calls_in_flight", "Calls that run", Some(levels.calls_in_flight)),
            ("hearth_calls_waiting", "Calls without instance", Some(levels.calls_waiting)),
            ("process_resident_memory_bytes", "Memory", process::resident_memory_bytes()),
            ("process_open_fds", "Open descriptors", process::open_fds()),
        ] {
            let Some(value) = value else { continue };
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        let (name, help) = ("hearth_log_lines_dropped", "Lines of functions' logs left out");
        let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(levels.log_lines_dropped).encode(counter)
    }
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: &[(impl AsRef<str>, u64)],
) -> fmt::Result {
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (text, value) in values {
        ConstGauge::new(*value).encode(encoder.encode_family(&[(label, text.as_ref())])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
