//! What is said of functions and instances, in the API's words.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use adapter::Metering;
use api::{DeploymentState, FunctionLoad, InstanceState, SettingsView, Status};
use executor::{Activity, InstanceReport};
use model::{FunctionName, InstanceId, Settings};

use crate::{function::Active, platform::Platform, store::StoreError};

impl Platform {
    /// A function, as it is now.
    pub(crate) fn report(
        &self,
        function: &catalog::Function,
        attempts: &[catalog::Deployment],
    ) -> api::Function {
        let active = self.active(function.name.as_str());
        api::Function {
            name: function.name.to_string(),
            url: self.url_of(&function.name),
            active: Some(deployment(&function.active)),
            deployments: attempts.iter().map(deployment).collect(),
            settings: settings(&function.settings),
            load: active.as_deref().map(load).unwrap_or_default(),
            created_at: function.created_at,
            updated_at: function.updated_at,
        }
    }

    /// A function that exists, with its attempts to deploy.
    pub(crate) async fn find(
        self: &Arc<Self>,
        name: &FunctionName,
    ) -> Result<Option<api::Function>, StoreError> {
        let (platform, name) = (self.clone(), name.clone());
        self.blocking(move || {
            let Some(function) = platform.catalog.function(&name)? else { return Ok(None) };
            let attempts = platform.catalog.deployments(&name, catalog::KEPT_DEPLOYMENTS)?;
            Ok(Some(platform.report(&function, &attempts)))
        })
        .await
    }

    /// The settings of a function that exists.
    pub(crate) async fn settings(
        self: &Arc<Self>,
        name: &FunctionName,
    ) -> Result<Option<Settings>, StoreError> {
        let (platform, name) = (self.clone(), name.clone());
        let read = move || Ok(platform.catalog.function(&name)?.map(|function| function.settings));
        self.blocking(read).await
    }

    /// All functions, without their attempts.
    pub(crate) async fn list(self: &Arc<Self>) -> Result<Vec<api::Function>, StoreError> {
        let platform = self.clone();
        self.blocking(move || {
            let functions = platform.catalog.functions()?;
            Ok(functions.iter().map(|function| platform.report(function, &[])).collect())
        })
        .await
    }

    /// All instances, with the memory that they use.
    pub(crate) async fn instances(&self) -> Vec<api::Instance> {
        let adapter = self.executor.adapter().clone();
        let mut instances = Vec::new();
        for report in self.executor.instances() {
            let memory = match (adapter.metering(), &report.id) {
                (Some(metering), Some(id)) => memory(metering, id).await,
                _ => None,
            };
            instances.push(instance(report, memory));
        }
        instances
    }

    /// The daemon, and the functions that were called.
    pub(crate) fn status(&self, uptime: Duration) -> Status {
        let instances = self.executor.instances();
        let spares = instances.iter().filter(|report| report.activity == Activity::Spare).count();
        let all = self.all();
        let mut loads: Vec<_> = all.iter().map(|active| load(active)).collect();
        loads.retain(|load| load.calls + u64::from(load.in_flight + load.waiting) > 0);
        loads.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: uptime.as_secs_f64(),
            functions: all.len() as u64,
            instances: count(instances.len()),
            spares: count(spares),
            max_instances: self.executor.max_instances(),
            memory_bytes: resident_memory(),
            load: loads,
        }
    }
}

pub(crate) fn deployment(deployment: &catalog::Deployment) -> api::Deployment {
    api::Deployment {
        id: deployment.id.to_string(),
        state: match deployment.state {
            catalog::DeploymentState::Pending => DeploymentState::Pending,
            catalog::DeploymentState::Active => DeploymentState::Active,
            catalog::DeploymentState::Superseded => DeploymentState::Superseded,
            catalog::DeploymentState::Failed => DeploymentState::Failed,
        },
        runtime: deployment.runtime.clone(),
        entrypoint: deployment.entrypoint.clone(),
        artifact: deployment.artifact.as_ref().map(ToString::to_string).unwrap_or_default(),
        artifact_bytes: deployment.artifact_bytes,
        failure: deployment.failure.clone(),
        created_at: deployment.created_at,
    }
}

pub(crate) fn settings(settings: &Settings) -> SettingsView {
    let Settings { environment, timeout, limits, network, scale } = settings;
    SettingsView {
        environment: environment.keys().cloned().collect(),
        timeout: humantime::format_duration(*timeout).to_string(),
        memory_bytes: limits.memory_bytes,
        cpus: f64::from(limits.cpus_milli) / 1000.0,
        network: network.map_or_else(|| "default".into(), |network| network.to_string()),
        concurrency: scale.concurrency,
        min: scale.min,
        max: scale.max,
        idle: humantime::format_duration(scale.idle).to_string(),
    }
}

/// What a function does at the moment.
pub(crate) fn load(active: &Active) -> FunctionLoad {
    let current = active.current();
    let (service, why) = match &current.service {
        Ok(service) => (service.load(), None),
        Err(why) => (executor::Load::default(), Some(why.clone())),
    };
    let counters = &active.counters;
    FunctionLoad {
        name: active.name.to_string(),
        starting: service.starting,
        serving: service.serving,
        in_flight: service.in_flight,
        waiting: service.waiting,
        calls: counters.calls.load(Ordering::Relaxed),
        errors: counters.errors.load(Ordering::Relaxed),
        busy_micros: counters.busy_micros.load(Ordering::Relaxed),
        cold_starts: counters.earlier_cold_starts.load(Ordering::Relaxed) + service.cold_starts,
        trouble: why.or_else(|| service.trouble.map(|error| error.to_string())),
    }
}

async fn memory(metering: &dyn Metering, id: &InstanceId) -> Option<u64> {
    metering.usage(id).await.ok().map(|usage| usage.memory_bytes)
}

fn instance(report: InstanceReport, memory_bytes: Option<u64>) -> api::Instance {
    api::Instance {
        id: report.id.map(|id| id.to_string()).unwrap_or_default(),
        function: report.label,
        runtime: report.runtime,
        state: match report.activity {
            Activity::Spare => InstanceState::Spare,
            Activity::Starting => InstanceState::Starting,
            Activity::Idle => InstanceState::Idle,
            Activity::Busy => InstanceState::Busy,
            Activity::Draining => InstanceState::Draining,
        },
        in_flight: report.in_flight,
        calls: report.calls,
        age_seconds: report.age.as_secs_f64(),
        idle_seconds: report.idle.as_secs_f64(),
        memory_bytes,
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Bytes of this process that are in memory (proc_pid_statm(5)); 0 where nobody tells.
fn resident_memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
