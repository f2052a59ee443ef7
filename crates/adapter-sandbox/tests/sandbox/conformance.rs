//! The suite that every adapter passes.

use std::{
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use adapter::{
    Adapter, AdapterError, Attaching,
    conformance::{self, Subject},
};
use async_trait::async_trait;
use model::{Exit, Instance, InstanceId, LaunchSpec};

use crate::{
    Test,
    lab::{Lab, Outcome},
};

pub(crate) const TESTS: &[Test] = &[("conformance", |lab| Box::pin(conformance(lab)))];

async fn conformance(lab: Lab) -> Outcome {
    let subject = Sandboxes(lab);
    conformance::all(&subject).await;
    subject.0.adapter.shutdown().await;
    Outcome::Passed
}

struct Sandboxes(Lab);

impl Subject for Sandboxes {
    fn adapter(&self) -> &dyn Adapter {
        self
    }

    fn sleeping(&self, id: InstanceId) -> LaunchSpec {
        self.0.spec(&id, &["/bin/sleep", "1000"])
    }

    fn stubborn(&self, id: InstanceId) -> LaunchSpec {
        self.0.script(&id, "trap '' TERM; echo ready; while :; do sleep 1000; done")
    }

    fn exiting(&self, id: InstanceId) -> LaunchSpec {
        self.0.script(&id, "exit 7")
    }

    fn broken(&self, id: InstanceId) -> LaunchSpec {
        self.0.spec(&id, &["/nonexistent/program"])
    }

    fn artifact(&self) -> PathBuf {
        self.0.artifact()
    }
}

/// The adapter, but for one thing: a stubborn instance is launched once it has become stubborn.
#[async_trait]
impl Adapter for Sandboxes {
    fn name(&self) -> &'static str {
        self.0.adapter.name()
    }

    fn is_isolating(&self) -> bool {
        self.0.adapter.is_isolating()
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
    ) -> Result<Instance, AdapterError> {
        if spec.id.as_str() != "stubborn" {
            return self.0.adapter.launch(spec, output).await;
        }
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let instance = self.0.adapter.launch(spec, Some(writer.into())).await?;
        let mut ready = [0; 6];
        tokio::task::spawn_blocking(move || reader.read_exact(&mut ready).map(|()| reader))
            .await
            .expect("not cancelled")
            .expect("it says that it is ready");
        Ok(instance)
    }

    async fn wait(&self, id: &InstanceId) -> Result<Exit, AdapterError> {
        self.0.adapter.wait(id).await
    }

    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), AdapterError> {
        self.0.adapter.stop(id, grace).await
    }

    async fn recover(&self) -> Result<Vec<Instance>, AdapterError> {
        self.0.adapter.recover().await
    }

    fn attaching(&self) -> Option<&dyn Attaching> {
        Some(self)
    }
}

#[async_trait]
impl Attaching for Sandboxes {
    async fn attach(&self, id: &InstanceId, artifact: &Path) -> Result<PathBuf, AdapterError> {
        self.0.adapter.attach(id, artifact).await
    }
}
