//! The fake keeps what every adapter promises, and misbehaves only as planned.

use std::path::PathBuf;

use adapter::{
    Adapter, Attaching,
    conformance::{self, Subject},
};
use adapter_fake::{FakeAdapter, Fault};
use model::{InstanceId, LaunchSpec, Limits, Network};

struct Fake(FakeAdapter);

fn spec(id: InstanceId, command: &[&str]) -> LaunchSpec {
    LaunchSpec {
        id,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        zygote: None,
        environment: vec![],
        server: "/".into(),
        programs: vec![],
        limits: Limits::default(),
        network: Network::None,
        socket: None,
    }
}

impl Subject for Fake {
    fn adapter(&self) -> &dyn Adapter {
        &self.0
    }

    fn sleeping(&self, id: InstanceId) -> LaunchSpec {
        spec(id, &["sleep"])
    }

    fn stubborn(&self, id: InstanceId) -> LaunchSpec {
        spec(id, &["stubborn"])
    }

    fn exiting(&self, id: InstanceId) -> LaunchSpec {
        spec(id, &["exit", "7"])
    }

    fn broken(&self, id: InstanceId) -> LaunchSpec {
        spec(id, &["missing"])
    }

    fn artifact(&self) -> PathBuf {
        "/code".into()
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_keeps_every_promise() {
    conformance::all(&Fake(FakeAdapter::default())).await;
}

#[tokio::test(start_paused = true)]
async fn faults_happen_once_and_in_order() {
    let fake = FakeAdapter::default();
    fake.plan(Fault::LaunchFails);
    fake.plan(Fault::AttachFails);
    let spec = spec("one".parse().expect("an id"), &["sleep"]);
    fake.launch(&spec, None).await.expect_err("planned");
    let instance = fake.launch(&spec, None).await.expect("the plan was for one launch");
    fake.attach(&instance.id, "/code".as_ref(), &Limits::default()).await.expect_err("planned");
    fake.attach(&instance.id, "/code".as_ref(), &Limits::default())
        .await
        .expect("the plan was for one attach");
    assert_eq!((fake.launches(), fake.count()), (2, 1));
}
