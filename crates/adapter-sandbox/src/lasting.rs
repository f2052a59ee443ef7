//! A sandbox adapter that outlives its launcher.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use adapter::{Adapter, AdapterError, Attaching, Metering};
use async_trait::async_trait;
use model::{Exit, Instance, InstanceId, LaunchSpec, Limits, Usage};
use tracing::warn;

use crate::adapter::{Config, SandboxAdapter};

/// Runs instances like [`SandboxAdapter`], and starts another launcher if the one there was is
/// gone. All instances go with a launcher; new ones can be launched at once.
#[derive(Debug)]
pub struct LastingSandboxAdapter {
    config: Config,
    current: RwLock<Arc<SandboxAdapter>>,
    /// Held while a launcher is replaced; true once no other is to be started.
    replacing: tokio::sync::Mutex<bool>,
}

impl LastingSandboxAdapter {
    /// Starts the first launcher.
    pub async fn start(config: Config) -> Result<Self, AdapterError> {
        let first = SandboxAdapter::start(config.clone()).await?;
        let (current, replacing) = (RwLock::new(Arc::new(first)), tokio::sync::Mutex::new(false));
        Ok(Self { config, current, replacing })
    }

    /// The guarantees that do not hold on this machine, in words for the operator.
    pub fn weaknesses(&self) -> Vec<String> {
        self.current().weaknesses()
    }

    /// Why there is no egress network here, if there is none.
    pub fn no_egress(&self) -> Option<String> {
        self.current().no_egress().map(str::to_owned)
    }

    /// What all instances together may use, in bytes, if something limits them together.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.current().memory_bytes()
    }

    /// Kills all instances and removes everything. Returns when that is done.
    pub async fn shutdown(&self) {
        *self.replacing.lock().await = true;
        self.current().shutdown().await;
    }

    fn current(&self) -> Arc<SandboxAdapter> {
        self.current.read().expect("no panic while the lock is held").clone()
    }

    /// An adapter whose launcher lived a moment ago.
    async fn living(&self) -> Result<Arc<SandboxAdapter>, AdapterError> {
        let current = self.current();
        if !current.is_gone() {
            return Ok(current);
        }
        let is_over = self.replacing.lock().await;
        let current = self.current();
        if *is_over || !current.is_gone() {
            return Ok(current);
        }
        warn!("the launcher is gone, and every instance with it; starting another");
        let next = Arc::new(SandboxAdapter::start(self.config.clone()).await?);
        *self.current.write().expect("no panic while the lock is held") = next.clone();
        Ok(next)
    }
}

#[async_trait]
impl Adapter for LastingSandboxAdapter {
    fn name(&self) -> &'static str {
        "sandbox"
    }

    fn is_isolating(&self) -> bool {
        true
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
    ) -> Result<Instance, AdapterError> {
        let again = output.as_ref().and_then(|output| output.try_clone().ok());
        match self.living().await?.launch(spec, output).await {
            // It died under this launch.
            Err(AdapterError::Gone { .. }) => self.living().await?.launch(spec, again).await,
            outcome => outcome,
        }
    }

    async fn wait(&self, id: &InstanceId) -> Result<Exit, AdapterError> {
        self.current().wait(id).await
    }

    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), AdapterError> {
        match self.current().stop(id, grace).await {
            // Instances end with their launcher, and the next one removes what they had.
            Err(AdapterError::Gone { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    async fn recover(&self) -> Result<Vec<Instance>, AdapterError> {
        self.current().recover().await
    }

    fn attaching(&self) -> Option<&dyn Attaching> {
        Some(self)
    }

    fn metering(&self) -> Option<&dyn Metering> {
        Some(self)
    }
}

#[async_trait]
impl Attaching for LastingSandboxAdapter {
    async fn attach(
        &self,
        id: &InstanceId,
        artifact: &Path,
        limits: &Limits,
    ) -> Result<PathBuf, AdapterError> {
        self.current().attach(id, artifact, limits).await
    }
}

#[async_trait]
impl Metering for LastingSandboxAdapter {
    async fn usage(&self, id: &InstanceId) -> Result<Usage, AdapterError> {
        self.current().usage(id).await
    }
}
