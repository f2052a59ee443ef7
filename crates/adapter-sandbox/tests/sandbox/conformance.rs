//! The suite that every adapter passes.

use std::path::PathBuf;

use adapter::{
    Adapter,
    conformance::{self, Subject},
};
use model::{InstanceId, LaunchSpec};

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
        &self.0.adapter
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
        // A zygote is not asked what program there is.
        LaunchSpec { zygote: None, ..self.0.spec(&id, &["/nonexistent/program"]) }
    }

    fn artifact(&self) -> PathBuf {
        self.0.artifact()
    }
}
