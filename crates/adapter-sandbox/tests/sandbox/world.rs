//! What an instance finds: its code, its socket, its environment; and what is reported of its end.

use std::{fs, os::unix::fs::chown, os::unix::net::UnixListener};

use adapter::Adapter;
use adapter_sandbox::ARTIFACT_OWNER;
use model::{ExitStatus, InstanceSocket, Limits, paths};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Test,
    lab::{Lab, Outcome, id, is_root},
};

pub(crate) const TESTS: &[Test] = &[
    ("the_environment_is_exactly_what_was_given", |lab| {
        Box::pin(the_environment_is_exactly_what_was_given(lab))
    }),
    ("attached_code_is_private_and_writable", |lab| {
        Box::pin(attached_code_is_private_and_writable(lab))
    }),
    ("the_socket_of_an_instance_is_its_own", |lab| {
        Box::pin(the_socket_of_an_instance_is_its_own(lab))
    }),
    ("programs_outside_usr_can_be_shown", |lab| Box::pin(programs_outside_usr_can_be_shown(lab))),
    ("interpreters_find_what_they_need", |lab| Box::pin(interpreters_find_what_they_need(lab))),
    ("a_killed_worker_is_reported", |lab| Box::pin(a_killed_worker_is_reported(lab))),
    ("orphans_are_collected", |lab| Box::pin(orphans_are_collected(lab))),
    ("bad_specifications_are_errors", |lab| Box::pin(bad_specifications_are_errors(lab))),
];

async fn the_environment_is_exactly_what_was_given(lab: Lab) -> Outcome {
    let mut spec = lab.spec(&id("environment"), &["/usr/bin/env"]);
    spec.environment = vec![("ONE".into(), "1".into()), ("EMPTY".into(), String::new())];
    assert_eq!(lab.run(&spec).await.0, "ONE=1\nEMPTY=\n");

    let spec =
        lab.script(&id("where"), "pwd; hostname; echo $0; ls {server}/src; tty -s || echo no tty");
    let expected = format!("{}\nhearth\n/bin/sh\nfunction\nno tty\n", paths::SERVER);
    assert_eq!(lab.run(&spec).await.0, expected);
    Outcome::Passed
}

async fn attached_code_is_private_and_writable(lab: Lab) -> Outcome {
    let artifact = lab.artifact();
    if is_root() {
        for path in [artifact.clone(), artifact.join("main.txt")] {
            chown(path, Some(ARTIFACT_OWNER), Some(ARTIFACT_OWNER)).expect("give away");
        }
    }
    let script = "until test -e src/function/main.txt; do sleep 0.01; done; cd src/function; \
        cat main.txt; echo; stat -c %u main.txt; echo changed > main.txt; echo new > new.txt; \
        cat main.txt new.txt; cat /mnt/code/main.txt; echo; touch /mnt/code/x 2>/dev/null || echo kept";
    for name in ["one", "two"] {
        let spec = lab.script(&id(name), script);
        let output = lab.launch(&spec).await;
        let attaching = lab.adapter.attaching().expect("can attach");
        let inside = attaching.attach(&spec.id, &artifact, &spec.limits).await.expect("attach");
        assert_eq!(inside, std::path::Path::new(paths::FUNCTION));
        lab.adapter.wait(&spec.id).await.expect("wait");
        lab.stop(&spec.id).await;
        let expected = "as built\n1000\nchanged\nnew\nas built\nkept\n";
        assert_eq!(output.rest().await, expected, "{name}");
    }
    assert_eq!(fs::read_to_string(artifact.join("main.txt")).expect("there"), "as built");
    assert!(!artifact.join("new.txt").exists());
    Outcome::Passed
}

async fn the_socket_of_an_instance_is_its_own(lab: Lab) -> Outcome {
    const PROGRAM: &str = "
import os, socket
path = os.environ['HEARTH_SOCKET']
print(path, os.listdir('/run/hearth'), flush=True)
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
connection.sendall(b'hello')
";
    let directory = lab.directory.path().join("socket");
    fs::create_dir(&directory).expect("a directory");
    let path = directory.join("worker.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut spec = match lab.python("socket", PROGRAM) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    spec.socket = Some(InstanceSocket { variable: "HEARTH_SOCKET".into(), path });
    let heard = tokio::task::spawn_blocking(move || {
        std::io::read_to_string(listener.accept().expect("a connection").0).expect("text")
    });
    let (output, exit) = lab.run(&spec).await;
    assert_eq!(output, "/run/hearth/worker.sock ['worker.sock']\n", "{exit:?}");
    assert_eq!(heard.await.expect("no panic"), "hello");
    Outcome::Passed
}

async fn programs_outside_usr_can_be_shown(lab: Lab) -> Outcome {
    let program = std::env::current_exe().expect("this program");
    let directory = program.parent().expect("is in a directory");
    if ["/usr", "/tmp"].iter().any(|taken| directory.starts_with(taken)) {
        return Outcome::Skipped("built in /usr or /tmp".into());
    }
    let program = program.to_str().expect("text");
    let mut spec = lab.spec(&id("program"), &[program, "__echo", "{server} is there"]);
    spec.programs = vec![directory.into()];
    assert_eq!(lab.run(&spec).await.0, format!("{} is there\n", paths::SERVER));

    // An instance has a /tmp of its own, and /var/tmp is a link to it.
    for hidden in [lab.artifact(), "/var/tmp".into(), "/../etc".into()] {
        spec.programs = vec![hidden];
        lab.adapter.launch(&spec, None).await.expect_err("cannot be shown");
    }
    Outcome::Passed
}

async fn interpreters_find_what_they_need(lab: Lab) -> Outcome {
    let node = "const os = require('os'), fs = require('fs');
        fs.writeFileSync('/tmp/x', require('crypto').randomBytes(4));
        new (require('worker_threads').Worker)('0', { eval: true });
        console.log('works', os.hostname(), os.userInfo().username)";
    let python =
        "import hashlib, os, pwd, socket, ssl, subprocess, tempfile, threading, multiprocessing
tempfile.mkstemp(); threading.Thread(target=print).start(); os.urandom(4)
multiprocessing.Lock(); ssl.create_default_context()
subprocess.run(['true'], check=True)
print('works', socket.gethostname(), pwd.getpwuid(os.getuid()).pw_name)";
    let mut found = 0;
    for (program, flag, text) in
        [("/usr/bin/node", "-e", node), ("/usr/bin/python3.11", "-c", python)]
    {
        if !std::path::Path::new(program).exists() {
            println!("skipped: a part of interpreters_find_what_they_need: no {program}");
            continue;
        }
        found += 1;
        let mut spec = lab.spec(&id("interpreter"), &[program, flag, text]);
        spec.limits = Limits::default();
        let (output, exit) = lab.run(&spec).await;
        assert!(output.ends_with("works hearth hearth\n"), "{program} {exit:?}: {output}");
    }
    if found == 0 { Outcome::Skipped("no interpreter in /usr/bin".into()) } else { Outcome::Passed }
}

async fn a_killed_worker_is_reported(lab: Lab) -> Outcome {
    let spec = lab.spec(&id("killed"), &["/bin/sleep", "1000"]);
    let instance = lab.adapter.launch(&spec, None).await.expect("launch");
    let init = instance.pid.expect("has a process");
    let worker = lab.worker_of(init).try_into().ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(worker, Signal::KILL).expect("kill");
    let exit = lab.adapter.wait(&spec.id).await.expect("wait");
    assert_eq!(exit.status, ExitStatus::Signal(9));
    assert!(!exit.out_of_memory);
    lab.stop(&spec.id).await;
    Outcome::Passed
}

async fn orphans_are_collected(lab: Lab) -> Outcome {
    let script = "(sh -c 'sleep 0.05' & ) ; (true &); sleep 0.2; \
        grep -l '^State:.Z' /proc/[0-9]*/status; (sleep 1000 &); exit 5";
    let (output, exit) = lab.run(&lab.script(&id("orphans"), script)).await;
    assert_eq!(output, "", "no zombies");
    assert_eq!(exit.status, ExitStatus::Code(5), "a left-over child does not hold it up");
    Outcome::Passed
}

async fn bad_specifications_are_errors(lab: Lab) -> Outcome {
    let good = lab.spec(&id("bad"), &["/bin/true"]);
    let mut specs = vec![good.clone(); 6];
    specs[0].command.clear();
    specs[1].command.push("zero\0byte".into());
    specs[2].server = "/nonexistent/server".into();
    specs[3].programs.push("/nonexistent/programs".into());
    specs[4].environment.push(("LONG".into(), "x".repeat(1 << 20)));
    specs[5].socket =
        Some(InstanceSocket { variable: "S".into(), path: "/nonexistent/socket".into() });
    for spec in specs {
        lab.adapter.launch(&spec, None).await.expect_err("cannot be launched");
        assert_eq!(lab.adapter.recover().await.expect("recover"), []);
    }
    lab.run(&good).await;
    Outcome::Passed
}
