//! What every adapter promises, as tests. An adapter's own tests call [`all`].
//!
//! The suite needs instances of three kinds. Where they come from differs between engines, so
//! each adapter says how to make them with a [`Subject`].

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{ExitStatus, InstanceId, LaunchSpec, Limits};

use crate::{Adapter, AdapterError};

const LONG: Duration = Duration::from_secs(10);

/// An adapter under test, with the specifications the suite launches.
pub trait Subject: Sync {
    /// The adapter.
    fn adapter(&self) -> &dyn Adapter;
    /// An instance that runs until it is stopped, and ends politely when asked to.
    fn sleeping(&self, id: InstanceId) -> LaunchSpec;
    /// An instance that runs until it is killed, whatever politeness it is shown. It prints
    /// something once it is that stubborn.
    fn stubborn(&self, id: InstanceId) -> LaunchSpec;
    /// An instance that exits with status 7 at once.
    fn exiting(&self, id: InstanceId) -> LaunchSpec;
    /// A specification that cannot work: its program does not exist.
    fn broken(&self, id: InstanceId) -> LaunchSpec;
    /// A directory that may be attached, if the adapter can attach.
    fn artifact(&self) -> PathBuf;
}

/// Runs the whole suite, one promise after the other.
pub async fn all(subject: &dyn Subject) {
    a_launched_instance_is_listed_until_it_is_stopped(subject).await;
    an_exit_status_is_reported_to_everyone_who_waits(subject).await;
    stopping_twice_succeeds(subject).await;
    stopping_an_unknown_instance_succeeds(subject).await;
    a_stubborn_instance_is_killed_after_its_grace(subject).await;
    a_broken_launch_leaves_nothing(subject).await;
    an_id_is_used_once_at_a_time(subject).await;
    waiting_for_an_unknown_instance_is_an_error(subject).await;
    dropping_a_wait_disturbs_nobody(subject).await;
    instances_end_independently(subject).await;
    code_is_attached_once(subject).await;
}

fn id(text: &str) -> InstanceId {
    text.parse().expect("a valid id")
}

async fn assert_nothing_is_left(adapter: &dyn Adapter) {
    assert_eq!(adapter.recover().await.expect("recover"), [], "nothing is left on the engine");
}

/// The executor must be able to find everything it owns.
pub async fn a_launched_instance_is_listed_until_it_is_stopped(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let instance = adapter.launch(&subject.sleeping(id("listed")), None).await.expect("launch");
    assert_eq!(instance.id, id("listed"));
    assert_eq!(adapter.recover().await.expect("recover"), std::slice::from_ref(&instance));

    adapter.stop(&instance.id, LONG).await.expect("stop");
    assert_nothing_is_left(adapter).await;
}

/// A crash must be explained to the user, also if the watcher was slow or there were two.
pub async fn an_exit_status_is_reported_to_everyone_who_waits(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let instance = adapter.launch(&subject.exiting(id("exits")), None).await.expect("launch");
    let (first, second) = tokio::join!(adapter.wait(&instance.id), adapter.wait(&instance.id));
    let late = adapter.wait(&instance.id).await;
    for exit in [first, second, late] {
        let exit = exit.expect("wait");
        assert_eq!(exit.status, ExitStatus::Code(7));
        assert!(!exit.out_of_memory);
    }
    adapter.stop(&instance.id, Duration::ZERO).await.expect("release");
    assert_nothing_is_left(adapter).await;
}

/// A stop may be sent twice: after a timeout nobody knows whether the first worked.
pub async fn stopping_twice_succeeds(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let instance = adapter.launch(&subject.sleeping(id("twice")), None).await.expect("launch");
    let (one, two) = tokio::join!(
        adapter.stop(&instance.id, Duration::ZERO),
        adapter.stop(&instance.id, Duration::ZERO)
    );
    one.expect("first stop");
    two.expect("second stop at the same time");
    adapter.stop(&instance.id, Duration::ZERO).await.expect("stop afterwards");
    assert_nothing_is_left(adapter).await;
}

/// Clean-up code stops whatever it may have started, without asking first.
pub async fn stopping_an_unknown_instance_succeeds(subject: &dyn Subject) {
    subject.adapter().stop(&id("never-seen"), Duration::ZERO).await.expect("stop");
}

/// A function cannot refuse to end.
pub async fn a_stubborn_instance_is_killed_after_its_grace(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let (mut output, printed) = std::io::pipe().expect("a pipe");
    let spec = subject.stubborn(id("stubborn"));
    let instance = adapter.launch(&spec, Some(printed.into())).await.expect("launch");
    let prints = tokio::task::spawn_blocking(move || output.read(&mut [0]).map(|_| output));
    let _output = prints.await.expect("no panic").expect("it prints, or nobody can");
    let grace = Duration::from_millis(50);
    let (stopped, exit) =
        tokio::join!(adapter.stop(&instance.id, grace), adapter.wait(&instance.id));
    stopped.expect("stop");
    assert_eq!(exit.expect("wait").status, ExitStatus::Signal(9), "killed");
    assert_nothing_is_left(adapter).await;
}

/// A launch is repeated after a failure, so a failure must not pile up anything.
pub async fn a_broken_launch_leaves_nothing(subject: &dyn Subject) {
    let adapter = subject.adapter();
    adapter.launch(&subject.broken(id("broken")), None).await.expect_err("cannot be launched");
    assert_nothing_is_left(adapter).await;
}

/// Two instances under one id could not be told apart when stopping.
pub async fn an_id_is_used_once_at_a_time(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let spec = subject.sleeping(id("unique"));
    adapter.launch(&spec, None).await.expect("launch");
    let second = adapter.launch(&spec, None).await;
    assert!(matches!(second, Err(AdapterError::Exists(_))), "{second:?}");

    adapter.stop(&spec.id, Duration::ZERO).await.expect("stop");
    adapter.launch(&spec, None).await.expect("free again after the stop");
    adapter.stop(&spec.id, Duration::ZERO).await.expect("stop");
    assert_nothing_is_left(adapter).await;
}

/// Waiting for what will never end would hang its caller.
pub async fn waiting_for_an_unknown_instance_is_an_error(subject: &dyn Subject) {
    let exit = subject.adapter().wait(&id("never-seen")).await;
    assert!(matches!(exit, Err(AdapterError::Unknown(_))), "{exit:?}");
}

/// Waits are raced against calls and dropped all the time.
pub async fn dropping_a_wait_disturbs_nobody(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let instance = adapter.launch(&subject.sleeping(id("dropped")), None).await.expect("launch");
    let impatient = tokio::time::timeout(Duration::from_millis(10), adapter.wait(&instance.id));
    impatient.await.expect_err("still running");
    assert_eq!(adapter.recover().await.expect("recover").len(), 1, "still there");
    adapter.stop(&instance.id, LONG).await.expect("stop");
    assert_nothing_is_left(adapter).await;
}

/// One instance's end is nobody else's business.
pub async fn instances_end_independently(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let lasting = adapter.launch(&subject.sleeping(id("lasting")), None).await.expect("launch");
    let ending = adapter.launch(&subject.exiting(id("ending")), None).await.expect("launch");
    adapter.wait(&ending.id).await.expect("wait");
    adapter.stop(&ending.id, Duration::ZERO).await.expect("release");
    assert_eq!(adapter.recover().await.expect("recover"), std::slice::from_ref(&lasting));
    adapter.stop(&lasting.id, LONG).await.expect("stop");
    assert_nothing_is_left(adapter).await;
}

/// An instance belongs to one function for good.
pub async fn code_is_attached_once(subject: &dyn Subject) {
    let adapter = subject.adapter();
    let Some(attaching) = adapter.attaching() else { return };
    let instance = adapter.launch(&subject.sleeping(id("attached")), None).await.expect("launch");
    let artifact = subject.artifact();
    let inside =
        attaching.attach(&instance.id, &artifact, &Limits::default()).await.expect("attach");
    assert!(inside.is_absolute(), "{inside:?}");
    attaching.attach(&instance.id, &artifact, &Limits::default()).await.expect_err("a second time");

    let nowhere = attaching.attach(&id("never-seen"), &artifact, &Limits::default()).await;
    assert!(matches!(nowhere, Err(AdapterError::Unknown(_))), "{nowhere:?}");
    adapter.stop(&instance.id, LONG).await.expect("stop");

    let other = adapter.launch(&subject.sleeping(id("nothing")), None).await.expect("launch");
    let missing =
        attaching.attach(&other.id, Path::new("/nonexistent/artifact"), &Limits::default()).await;
    missing.expect_err("no such artifact");
    adapter.stop(&other.id, LONG).await.expect("stop");
    assert_nothing_is_left(adapter).await;
}
