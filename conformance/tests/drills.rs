//! What is lost, and what is not, when something is killed while calls come.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
};

use conformance::{
    clock::Clock,
    flavour::Flavour,
    load::Load,
    on_each_runtime,
    platform::{Options, Platform, Source, fixture, has_groups, is_sandboxed, request, skip},
    process::Process,
    server::Scratch,
    wait,
};
use serde_json::json;

fn deployed(flavour: &Flavour) -> Platform {
    let platform = Platform::new();
    platform.deploy("drilled", &fixture(&flavour.runtime), &[]);
    platform
}

fn assert_serves(platform: &Platform, name: &str) {
    let response = platform.call(name, "/");
    assert_eq!(response.status(), 200, "{}", response.text());
}

on_each_runtime! {
    fn only_the_calls_in_an_instance_that_is_killed_are_lost(flavour: &Flavour) {
        if !has_groups("an instance that is killed") {
            return;
        }
        let platform = deployed(flavour);
        platform.deploy("bystander", &fixture(&flavour.runtime), &[]);
        let load = Load::start(&platform, "bystander", "/", 2);
        for _ in 0..3 {
            let mut call = platform.connect();
            call.send(&request("drilled", "/sleep?ms=15000").bytes()).expect("send");
            wait::until("the call runs", || {
                platform.load("drilled", "in_flight") == 1
                    && platform.load("drilled", "serving") == 1
            });
            platform.kill_instances("drilled");
            let lost = call.response().expect("a response");
            assert_eq!(lost.status(), 502, "{}", lost.text());
            assert_eq!(lost.json()["error"]["code"], "instance-lost", "{}", lost.text());
            assert_serves(&platform, "drilled");
        }
        let outcomes = load.stop();
        assert_eq!(outcomes.others(), 0, "{outcomes:?}");
    }

    fn a_call_is_not_run_twice_when_its_instance_is_killed(flavour: &Flavour) {
        if !has_groups("a call runs once") {
            return;
        }
        let platform = deployed(flavour);
        let mut call = platform.connect();
        call.send(&request("drilled", "/sleep?ms=15000").bytes()).expect("send");
        wait::until("the function has said that it began", || {
            platform.logged("drilled").contains(&"began".to_owned())
        });
        platform.kill_instances("drilled");
        let lost = call.response().expect("a response");
        let id = lost.head.one("x-hearth-call").expect("the call's id").to_owned();
        assert_serves(&platform, "drilled");
        let log = platform.log("drilled");
        let began: Vec<_> = log.iter().filter(|line| line["text"] == "began").collect();
        assert_eq!(began.len(), 1, "{log:#?}");
        assert_eq!(began[0]["call"], id);
        let ends: Vec<_> =
            log.iter().filter(|line| line["event"] == "end" && line["call"] == id).collect();
        assert_eq!(ends.len(), 1, "{log:#?}");
        assert_eq!(ends[0]["outcome"], "lost", "{log:#?}");
    }

    fn calls_work_again_after_the_launcher_was_killed(flavour: &Flavour) {
        if !is_sandboxed("a launcher that is killed") {
            return;
        }
        let platform = deployed(flavour);
        let load = Load::start(&platform, "drilled", "/", 2);
        let launcher = launcher(&platform);
        launcher.signal("KILL");
        wait::until("the launcher is gone", || !launcher.is_alive());
        wait::until("calls work again", || platform.call("drilled", "/").status() == 200);
        load.stop();
        for _ in 0..20 {
            assert_serves(&platform, "drilled");
        }
        platform.deploy("later", &fixture(&flavour.runtime), &[]);
        assert_serves(&platform, "later");
    }

    fn calls_work_again_after_all_but_the_launcher_was_killed(flavour: &Flavour) {
        if !is_sandboxed("instances that are killed with all they are made from") {
            return;
        }
        let platform = deployed(flavour);
        for _ in 0..3 {
            let launcher = launcher(&platform);
            let mut victims = platform.process().descendants();
            victims.retain(|process| *process != launcher);
            for victim in &victims {
                victim.signal("KILL");
            }
            wait::until("they are gone", || !victims.iter().any(Process::is_alive));
            wait::until("calls work again", || platform.call("drilled", "/").status() == 200);
        }
        platform.deploy("later", &fixture(&flavour.runtime), &[]);
        assert_serves(&platform, "later");
    }

    fn an_instance_that_is_stopped_costs_its_calls_their_time_and_is_replaced(flavour: &Flavour) {
        if !has_groups("an instance that is stopped") {
            return;
        }
        let platform = Platform::new();
        platform.deploy("frozen", &fixture(&flavour.runtime), &["--timeout", "1s"]);
        assert_serves(&platform, "frozen");
        let frozen = platform.instances("frozen");
        for process in frozen.iter().flat_map(|instance| platform.processes(instance)) {
            process.signal("STOP");
        }
        let late = platform.call("frozen", "/");
        assert_eq!(late.status(), 504, "{}", late.text());
        wait::until("calls work again", || platform.call("frozen", "/").status() == 200);
        wait::until("it is gone", || {
            !platform.instances("frozen").iter().any(|instance| frozen.contains(instance))
        });
    }

    fn a_daemon_that_was_killed_serves_the_same_functions_again(flavour: &Flavour) {
        let platform = deployed(flavour);
        platform.deploy("other", &fixture(&flavour.runtime), &["--env", "VERSION=other"]);
        let load = Load::start(&platform, "drilled", "/", 2);
        for _ in 0..2 {
            assert_serves(&platform, "drilled");
            platform.kill();
            platform.restart();
            assert_serves(&platform, "drilled");
            assert_eq!(platform.call("other", "/").json()["version"], "other");
            let states = platform.ask("/v1/functions");
            assert_eq!(states.as_array().map(Vec::len), Some(2), "{states}");
        }
        load.stop();
    }

    fn a_signal_under_load_lets_running_calls_finish(flavour: &Flavour) {
        let platform = deployed(flavour);
        assert_serves(&platform, "drilled");
        let load = Load::start(&platform, "drilled", "/", 2);
        let mut calls: Vec<_> = (0..5)
            .map(|_| {
                let mut call = platform.connect();
                call.send(&request("drilled", "/sleep?ms=1500").bytes()).expect("send");
                call
            })
            .collect();
        wait::until("the calls run", || platform.load("drilled", "in_flight") >= 5);
        let family = platform.process().descendants();
        platform.signal("TERM");
        for call in &mut calls {
            assert_eq!(call.response().expect("a response").status(), 200);
        }
        assert_eq!(platform.wait_for_exit().code(), Some(0));
        let outcomes = load.stop();
        let wrong = outcomes.statuses.keys().find(|status| ![0, 200, 503].contains(*status));
        assert_eq!(wrong, None, "{outcomes:?}");
        wait::until("nothing is left", || !family.iter().any(Process::is_alive));
    }
}

fn launcher(platform: &Platform) -> Process {
    let family = platform.process().descendants();
    let is_launcher = |process: &&Process| process.command_line().contains("__launcher");
    family.iter().find(is_launcher).expect("the daemon has a launcher").clone()
}

#[test]
fn a_deployment_that_was_interrupted_has_failed() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("cut", &source, &["--env", "VERSION=1"]);
    let endless = Source::node("for (;;);");
    let arguments = ["deploy", endless.path().to_str().expect("text"), "--name", "cut"];
    let mut deploying = platform.prepared(&arguments).spawn().expect("hearth runs");
    wait::until("the deployment is being made", || {
        let deployments = platform.function("cut")["deployments"].clone();
        deployments.as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "pending"))
    });
    platform.kill();
    assert_ne!(deploying.wait().expect("our child").code(), Some(0));
    platform.restart();
    assert_eq!(platform.call("cut", "/").json()["version"], "1");
    let deployments = platform.function("cut")["deployments"].clone();
    let newest = &deployments[0];
    assert_eq!(newest["state"], "failed", "{deployments:#}");
    let reason = newest["failure"].as_str().unwrap_or_default();
    assert!(!reason.is_empty(), "{deployments:#}");
}

/// A deployment whose build has begun and does not end by itself.
fn endless_build(platform: &Platform) -> Child {
    let (deploying, _source) = endless_build_of(platform, "endless");
    wait::until("the build runs", || endless_builds(platform) == 1);
    deploying
}

fn endless_builds(platform: &Platform) -> usize {
    let family = platform.process().descendants();
    family.iter().filter(|process| process.command_line().starts_with("sleep 300")).count()
}

/// A deployment whose build does not end by itself, if it has its turn.
fn endless_build_of(platform: &Platform, name: &str) -> (Child, Source) {
    let source = Source::of(&[
        ("index.js", "module.exports = ({ res }) => res.empty();"),
        ("package.json", r#"{"scripts": {"preinstall": "sleep 300"}}"#),
    ]);
    let arguments = ["deploy", source.path().to_str().expect("text"), "--name", name];
    let mut command = platform.prepared(&arguments);
    (command.stderr(Stdio::null()).spawn().expect("hearth runs"), source)
}

#[test]
fn a_signal_gives_up_builds() {
    if Flavour::of("node").is_none() {
        return;
    }
    let platform = Platform::new();
    let mut deploying = endless_build(&platform);
    let family = platform.process().descendants();
    platform.signal("TERM");
    assert_eq!(platform.wait_for_exit().code(), Some(0));
    assert_ne!(deploying.wait().expect("our child").code(), Some(0));
    wait::until("nothing is left", || !family.iter().any(Process::is_alive));
}

#[test]
fn a_removal_gives_up_the_deployment_under_way_and_no_later_one() {
    if Flavour::of("node").is_none() {
        return;
    }
    let platform = Platform::new();
    let mut deploying = endless_build(&platform);
    assert_eq!(platform.command(&["rm", "endless"]).code, Some(0));
    assert_ne!(deploying.wait().expect("our child").code(), Some(0));
    platform.deploy("endless", &fixture("node"), &[]);
    assert_serves(&platform, "endless");
}

#[test]
fn a_newer_deployment_gives_up_the_one_that_still_builds() {
    if Flavour::of("node").is_none() {
        return;
    }
    let platform = Platform::new();
    let mut deploying = endless_build(&platform);
    platform.deploy("endless", &fixture("node"), &[]);
    assert_ne!(deploying.wait().expect("our child").code(), Some(0));
    assert_serves(&platform, "endless");
    let deployments = platform.function("endless")["deployments"].clone();
    let failure = deployments[1]["failure"].as_str().unwrap_or_default().to_owned();
    assert!(failure.contains("a newer deployment"), "{deployments:#}");
}

#[test]
fn builds_that_do_not_end_hold_up_nobody_who_has_nothing_to_build() {
    if Flavour::of("node").is_none() {
        return;
    }
    let platform = Platform::new();
    let mut building: Vec<_> =
        ["one", "two", "three"].map(|name| endless_build_of(&platform, name)).into();
    wait::until("as many build as may", || endless_builds(&platform) == 2);
    platform.deploy("other", &fixture("node"), &[]);
    assert_serves(&platform, "other");
    platform.signal("TERM");
    for (deploying, _source) in &mut building {
        assert_ne!(deploying.wait().expect("our child").code(), Some(0));
    }
}

#[test]
fn a_removal_waits_for_long_calls_and_succeeds() {
    let platform = Platform::new();
    let settings = ["--timeout", "2m"];
    platform.deploy("long", &fixture(&Flavour::any().runtime), &settings);
    let mut call = platform.connect();
    call.send(&request("long", "/sleep?ms=100000").bytes()).expect("send");
    wait::until("the call runs", || platform.load("long", "in_flight") == 1);
    // Calls of what is removed get half a minute.
    let removed = platform.command(&["rm", "long"]);
    assert_eq!(removed.code, Some(0), "{}", removed.errors);
    assert_eq!(removed.output, "long\n");
    assert_eq!(platform.instances("long"), Vec::<String>::new());
}

#[test]
fn a_removal_goes_on_after_an_interrupt_and_says_so() {
    let platform = Platform::new();
    platform.deploy("long", &fixture(&Flavour::any().runtime), &[]);
    let mut call = platform.connect();
    call.send(&request("long", "/sleep?ms=4000").bytes()).expect("send");
    wait::until("the call runs", || platform.load("long", "in_flight") == 1);
    let mut removing = platform.prepared(&["rm", "long"]);
    let removing = removing.stderr(Stdio::piped()).spawn().expect("hearth runs");
    wait::until("the removal has begun", || platform.ask("/v1/functions") == json!([]));
    Process::of(removing.id()).expect("it waits for the call").signal("INT");
    let ended = removing.wait_with_output().expect("our child");
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the daemon goes on to remove long"), "{errors}");
    assert_eq!(call.response().expect("a response").status(), 200, "it was not cut off");
    wait::until("nothing is left", || platform.instances("long").is_empty());
}

#[test]
fn builds_end_with_a_daemon_that_is_killed() {
    if Flavour::of("node").is_none() {
        return;
    }
    let platform = Platform::new();
    let mut deploying = endless_build(&platform);
    let family = platform.process().descendants();
    platform.signal("KILL");
    platform.wait_for_exit();
    deploying.wait().expect("our child");
    let are_gone = wait::comes(|| !family.iter().any(Process::is_alive));
    for process in family.iter().filter(|process| process.is_alive()) {
        process.signal("KILL");
    }
    assert!(are_gone, "the build outlives its daemon");
}

#[test]
fn deployments_that_hang_do_not_hold_up_others() {
    if Flavour::of("node").is_none() {
        return;
    }
    let platform = Platform::new();
    let endless = Source::node("for (;;);");
    let mut hanging: Vec<_> = (0..2)
        .map(|serial| {
            let name = format!("hanging-{serial}");
            let folder = endless.path().to_str().expect("text");
            let mut command = platform.prepared(&["deploy", folder, "--name", &name]);
            command.stderr(Stdio::null()).spawn().expect("hearth runs")
        })
        .collect();
    wait::until("both are being started", || {
        let instances = platform.ask("/v1/instances");
        let starting = |instance: &&serde_json::Value| instance["state"] == "starting";
        instances.as_array().is_some_and(|all| all.iter().filter(starting).count() == 2)
    });
    let source = fixture("node");
    let folder = source.to_str().expect("our paths are text");
    let mut other = platform.prepared(&["deploy", folder, "--name", "other"]).spawn();
    let other = other.as_mut().expect("hearth runs");
    let is_over = wait::comes(|| other.try_wait().expect("our child").is_some());
    platform.kill();
    for deploying in hanging.iter_mut().chain([other]) {
        deploying.wait().expect("our child");
    }
    assert!(is_over, "others wait for what hangs");
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused() {
    let platform = Platform::new();
    let refused = platform.refused();
    assert_eq!(refused.code, Some(69), "{}", refused.errors);
    let data = platform.data().display().to_string();
    assert!(refused.errors.contains(&data), "{}", refused.errors);
    assert!(platform.is_alive());
}

/// A file system of a test's own, with little room.
struct SmallDisk(Scratch);

impl SmallDisk {
    fn new() -> Option<Self> {
        let scratch = Scratch::new();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=700", "hearth-test"]).arg(scratch.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(scratch)),
            _ => {
                skip("a full disk: no file system can be mounted here");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_fails_deployments_but_no_calls() {
    let Some(disk) = SmallDisk::new() else { return };
    let data = disk.0.path();
    let platform = Platform::start(Options::default().data(data));
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("full", &source, &[]);
    assert_serves(&platform, "full");

    let ballast = data.join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    let filled = std::iter::repeat_n([0; 4096], 16384).try_for_each(|page| file.write_all(&page));
    filled.expect_err("the disk is full");
    let mut tail = [0; 1].as_slice();
    while std::io::copy(&mut tail, &mut file).is_ok_and(|copied| copied > 0) {
        tail = [0; 1].as_slice();
    }

    let large = Source::of(&[
        ("index.js", "module.exports = ({ res }) => res.text('large');"),
        ("noise.txt", &noise(1 << 20)),
    ]);
    let failed = platform.try_deploy("full", large.path(), &[]);
    assert!(failed.code.is_some_and(|code| code != 0), "{failed:?}");
    assert!(failed.errors.to_lowercase().contains("no space left"), "{}", failed.errors);
    for _ in 0..50 {
        assert_eq!(platform.call("full", "/sleep?ms=0").status(), 200);
    }
    assert!(platform.is_alive());

    drop(file);
    std::fs::remove_file(&ballast).expect("removed");
    wait::until("logs are written again", || {
        let call = platform.call("full", "/sleep?ms=0");
        let id = call.head.one("x-hearth-call").unwrap_or_default();
        platform.log("full").iter().any(|line| line["call"] == id && line["text"] == "finished")
    });
    platform.deploy("full", large.path(), &[]);
    assert_eq!(platform.call("full", "/").text(), "large");
    drop(platform);
}

/// Text that does not become smaller when it is packed.
fn noise(length: usize) -> String {
    let mut state = 0x9e37_79b9_u32;
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-";
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        char::from(digits[state as usize % digits.len()])
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The daemon's own clock for the wall; those for durations are not set on real machines, either.
#[test]
fn a_clock_that_is_set_loses_neither_calls_nor_deployments() {
    const YEAR: i64 = 365 * 24 * 3600;
    let clock = match Clock::new() {
        Ok(clock) => clock,
        Err(why) => {
            skip(&format!("a clock that is set: {why}"));
            return;
        }
    };
    let mut options = Options::default();
    for (name, value) in clock.variables() {
        options = options.variable(name, value.to_str().expect("text"));
    }
    let platform = Platform::start(options);
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("steady", &source, &[]);
    let instance = platform.call("steady", "/").json()["instance"].clone();
    let load = Load::start(&platform, "steady", "/", 1);
    for (number, seconds) in [YEAR, -YEAR, 0].into_iter().enumerate() {
        let before = updated_at(&platform, "steady");
        let mut running = platform.connect();
        running.send(&request("steady", "/sleep?ms=700").bytes()).expect("send");
        wait::until("the call runs", || platform.load("steady", "in_flight") >= 1);
        clock.set(seconds);
        let over = running.response().expect("a response");
        assert_eq!(over.status(), 200, "{}", over.text());
        for call in [over, platform.call("steady", "/sleep?ms=1")] {
            let id = call.head.one("x-hearth-call").expect("the call's id").to_owned();
            let logs = platform.command(&["logs", "steady", "--call", &id]).output;
            assert!(logs.contains("finished"), "set by {seconds}: {logs:?}");
        }
        let version = format!("VERSION={number}");
        platform.deploy("changing", &source, &["--env", &version]);
        let serves = platform.call("changing", "/").json()["version"].clone();
        assert_eq!(serves, number.to_string());
        let differs = (updated_at(&platform, "changing") - before).abs() / 1000;
        if number == 0 && differs < YEAR / 2 {
            let why = "the program does not go by a clock of ours: it is linked statically";
            skip(&format!("a clock that is set: {why}"));
            return;
        }
        if seconds < 0 {
            platform.deploy("changing", &source, &["--env", "OTHER=1"]);
        }
    }
    let outcomes = load.stop();
    assert_eq!(outcomes.others(), 0, "{outcomes:?}");
    assert_eq!(platform.call("steady", "/").json()["instance"], instance, "nothing became too old");
    clock.set(-YEAR);
    platform.kill();
    platform.restart();
    assert_eq!(platform.call("changing", "/").json()["version"], "2");
}

/// Milliseconds since 1970.
fn updated_at(platform: &Platform, name: &str) -> i64 {
    platform.function(name)["updated_at"].as_i64().expect("a time")
}
