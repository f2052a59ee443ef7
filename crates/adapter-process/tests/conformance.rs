//! The process adapter keeps what every adapter promises, with real processes.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf, process::Command, time::Duration};

use adapter::{
    Adapter, AdapterError,
    conformance::{self, Subject},
};
use adapter_process::ProcessAdapter;
use model::{InstanceId, InstanceSocket, LaunchSpec, Limits, Network};

struct Processes {
    adapter: ProcessAdapter,
    directory: PathBuf,
}

impl Processes {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("hearth-{name}-{}", std::process::id()));
        let adapter = ProcessAdapter::start(directory.join("processes")).expect("start");
        Self { adapter, directory }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn shell(id: InstanceId, script: &str) -> LaunchSpec {
    LaunchSpec {
        id,
        command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        zygote: None,
        environment: vec![("GIVEN".into(), "yes".into())],
        server: "/".into(),
        programs: vec![],
        limits: Limits::default(),
        network: Network::Host,
        socket: None,
    }
}

impl Subject for Processes {
    fn adapter(&self) -> &dyn Adapter {
        &self.adapter
    }

    fn sleeping(&self, id: InstanceId) -> LaunchSpec {
        shell(id, "sleep 1000")
    }

    fn stubborn(&self, id: InstanceId) -> LaunchSpec {
        shell(id, "trap '' TERM; echo stubborn; while :; do sleep 1000; done")
    }

    fn exiting(&self, id: InstanceId) -> LaunchSpec {
        shell(id, "exit 7")
    }

    fn broken(&self, id: InstanceId) -> LaunchSpec {
        LaunchSpec { command: vec!["/nonexistent/program".into()], ..shell(id, "") }
    }

    fn artifact(&self) -> PathBuf {
        self.directory.clone()
    }
}

async fn output_of(subject: &Processes, spec: LaunchSpec) -> String {
    let (reading, writing) = std::io::pipe().expect("a pipe");
    subject.adapter.launch(&spec, Some(writing.into())).await.expect("launch");
    subject.adapter.wait(&spec.id).await.expect("wait");
    let text = tokio::task::spawn_blocking(move || std::io::read_to_string(reading));
    let text = text.await.expect("no panic").expect("read");
    subject.adapter.stop(&spec.id, Duration::ZERO).await.expect("release");
    text
}

#[tokio::test]
async fn the_process_adapter_keeps_every_promise() {
    conformance::all(&Processes::new("process-conformance")).await;
}

#[tokio::test]
async fn an_instance_gets_its_environment_and_no_other() {
    let subject = Processes::new("process-environment");
    let socket = InstanceSocket { variable: "SOCKET".into(), path: "/some/socket".into() };
    let spec = shell("environment".parse().expect("an id"), "env; echo error >&2");
    let text = output_of(&subject, LaunchSpec { socket: Some(socket), ..spec }).await;
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("PWD=")).collect();
    lines.retain(|line| !line.starts_with("_=") && !line.starts_with("SHLVL="));
    lines.sort_unstable();
    assert_eq!(lines, ["GIVEN=yes", "SOCKET=/some/socket", "error"]);
}

#[tokio::test]
async fn a_network_it_cannot_give_is_refused() {
    let subject = Processes::new("process-network");
    for network in [Network::None, Network::Egress] {
        let spec = LaunchSpec { network, ..shell("net".parse().expect("an id"), "exit") };
        let refused = subject.adapter.launch(&spec, None).await.expect_err("no isolation here");
        assert!(matches!(refused, AdapterError::Unsupported { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn the_processes_of_a_killed_owner_are_killed_by_the_next() {
    let subject = Processes::new("process-sweep");
    let notes = subject.directory.join("abandoned");
    fs::create_dir_all(&notes).expect("a directory");
    let mut orphan = std::os::unix::process::CommandExt::process_group(
        Command::new("/bin/sleep").arg("1000"),
        0,
    )
    .spawn()
    .expect("spawn");
    let stat = fs::read_to_string(format!("/proc/{}/stat", orphan.id())).expect("stat");
    let fields = stat.rsplit_once(')').expect("a name").1;
    let started = fields.split_whitespace().nth(19).expect("a start time");
    fs::write(notes.join("orphan"), format!("{} {started}", orphan.id())).expect("a note");
    // The same number, but a process that was started at another time.
    fs::write(notes.join("stranger"), format!("{} 1", std::process::id())).expect("a note");

    ProcessAdapter::start(notes.clone()).expect("start");
    assert_eq!(orphan.wait().expect("wait").signal(), Some(9), "and this test was not killed");
    assert_eq!(fs::read_dir(&notes).expect("the directory").count(), 0, "notes are gone");
}
