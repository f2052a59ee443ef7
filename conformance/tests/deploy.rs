//! From a folder to a function that serves, and to nothing again.

use std::{fs, path::Path, process::Stdio, thread};

use conformance::{
    client::Request,
    flavour::Flavour,
    load::Load,
    on_each_runtime,
    platform::{Finished, Platform, Source, fixture, has_groups, request},
    process::Process,
    wait,
};
use serde_json::json;

/// Functions that cannot be served: files, and what the reason must name.
type Broken = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const MISSING: &str = "file:///nothing/here.tgz";

const BROKEN_NODE: [Broken; 4] = [
    ("syntax", &[("index.js", "module.exports = (")], "Syntax error"),
    ("no entrypoint", &[("readme.txt", "nothing here")], "entrypoint"),
    ("exits at load", &[("index.js", "process.exit(7);")], "status 7"),
    ("throws at load", &[("index.js", "throw new Error('not today');")], "not today"),
];

const BROKEN_PYTHON: [Broken; 4] = [
    ("syntax", &[("main.py", "def main(context:")], "Syntax error"),
    ("no entrypoint", &[("readme.txt", "nothing here")], "entrypoint"),
    ("exits at load", &[("main.py", "import os\nos._exit(7)")], "status 7"),
    ("throws at load", &[("main.py", "raise ValueError('not today')")], "not today"),
];

fn broken(flavour: &Flavour) -> &'static [Broken] {
    if flavour.runtime == "node" { &BROKEN_NODE } else { &BROKEN_PYTHON }
}

/// A source whose install step fails without asking anybody outside.
fn not_installable(flavour: &Flavour) -> Source {
    let package = format!(r#"{{"dependencies": {{"nothing": "{MISSING}"}}}}"#);
    let requirement = format!("nothing @ {MISSING}");
    Source::of(&match flavour.runtime.as_str() {
        "node" => [
            ("index.js", "module.exports = ({ res }) => res.empty();"),
            ("package.json", &*package),
        ],
        _ => [("main.py", "def main(context): pass"), ("requirements.txt", &*requirement)],
    })
}

fn assert_not_deployed(finished: &Finished, reason: &str, what: &str) {
    let Finished { code, errors, .. } = finished;
    assert_eq!(*code, Some(65), "{what}: {errors}");
    assert!(errors.contains(reason), "{what}: {errors}");
}

fn version(platform: &Platform, name: &str) -> String {
    platform.call(name, "/").json()["version"].as_str().unwrap_or_default().to_owned()
}

/// Names of what is in a directory, with what is in those; none if it is not there.
fn entries(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            names.extend(entries(&entry.path()));
        }
        if !entry.path().is_dir() || directory.ends_with("artifacts") {
            names.push(entry.path().display().to_string());
        }
    }
    names
}

/// Files of functions in the data directory.
fn remains(platform: &Platform) -> Vec<String> {
    let parts = ["artifacts", "blobs", "logs", "scratch"];
    parts.iter().flat_map(|part| entries(&platform.data().join(part))).collect()
}

on_each_runtime! {
    fn a_new_folder_can_be_deployed_at_once(flavour: &Flavour) {
        let platform = Platform::new();
        let parent = Source::of(&[]);
        let folder = parent.path().join("begun");
        let path = folder.to_str().expect("our paths are text");
        let written = platform.command(&["init", path, "--runtime", &flavour.runtime]);
        assert_eq!(written.code, Some(0), "{}", written.errors);
        let deployed = platform.command(&["deploy", path]);
        assert_eq!(deployed.code, Some(0), "{}", deployed.errors);
        let reply = platform.call("begun", "/?name=Ada");
        assert_eq!((reply.status(), reply.text().as_str()), (200, "Hello, Ada!\n"));
    }

    fn a_function_is_deployed_and_called_and_leaves_nothing(flavour: &Flavour) {
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        platform.deploy("first", &source, &["--env", "VERSION=1"]);
        assert_eq!(version(&platform, "first"), "1");
        assert_eq!(platform.ask("/v1/functions")[0]["name"], "first");
        let under_path = Request::new("GET", "/fn/first/").header("host", "127.0.0.1");
        let answer = platform.connect().call(&under_path).expect("a response");
        assert_eq!(answer.json()["version"], "1");
        assert!(!platform.logged("first").is_empty() || !platform.log("first").is_empty());
        assert!(!remains(&platform).is_empty());
        let processes: Vec<Process> =
            platform.instances("first").iter().flat_map(|id| platform.processes(id)).collect();

        let groups: Vec<_> = processes.iter().flat_map(Process::groups).collect();

        let removed = platform.command(&["rm", "first"]);
        assert_eq!(removed.code, Some(0), "{}", removed.errors);
        assert_eq!(remains(&platform), Vec::<String>::new());
        assert!(!processes.iter().any(Process::is_alive), "{processes:?}");
        let kept: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
        assert!(kept.is_empty(), "{kept:?}");
        assert_eq!(platform.call("first", "/").status(), 404);
        assert_eq!(platform.ask("/v1/functions"), json!([]));
        assert_eq!(platform.command(&["rm", "first"]).code, Some(66));
        platform.deploy("first", &source, &[]);
        assert_eq!(version(&platform, "first"), "", "settings are gone, too");
    }

    fn no_call_fails_while_a_function_is_deployed_again(flavour: &Flavour) {
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        platform.deploy("busy", &source, &["--env", "VERSION=0"]);
        let load = Load::start(&platform, "busy", "/", 3);
        for number in 1..4 {
            platform.deploy("busy", &source, &["--env", &format!("VERSION={number}")]);
            let serves = version(&platform, "busy");
            assert_eq!(serves, number.to_string(), "it serves all calls from then on");
        }
        let outcomes = load.stop();
        assert_eq!(outcomes.others(), 0, "{outcomes:?}");
        assert!(outcomes.with(200) > 10, "{outcomes:?}");
    }

    fn a_call_of_the_old_deployment_finishes(flavour: &Flavour) {
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        platform.deploy("slow", &source, &["--env", "VERSION=old"]);
        let mut call = platform.connect();
        call.send(&request("slow", "/sleep?ms=1500").bytes()).expect("send");
        wait::until("the call runs", || platform.load("slow", "in_flight") == 1);
        platform.deploy("slow", &source, &["--env", "VERSION=new"]);
        assert_eq!(version(&platform, "slow"), "new");
        assert_eq!(call.response().expect("a response").json()["version"], "old");
        wait::until("the old instance is gone", || platform.instances("slow").len() == 1);
    }

    fn what_does_not_load_leaves_the_old_deployment_serving(flavour: &Flavour) {
        let platform = Platform::new();
        platform.deploy("robust", &fixture(&flavour.runtime), &["--env", "VERSION=good"]);
        let load = Load::start(&platform, "robust", "/", 1);
        for (what, files, reason) in broken(flavour) {
            let source = Source::of(files);
            let finished = platform.try_deploy("robust", source.path(), &["--runtime", &flavour.runtime]);
            assert_not_deployed(&finished, reason, what);
            assert_eq!(version(&platform, "robust"), "good", "{what}");
        }
        let failed = not_installable(flavour);
        let finished = platform.try_deploy("robust", failed.path(), &["--env", "VERSION=bad"]);
        assert_not_deployed(&finished, "install", "an install step that fails");
        assert_eq!(version(&platform, "robust"), "good");
        let outcomes = load.stop();
        assert_eq!(outcomes.others(), 0, "{outcomes:?}");

        let deployments = platform.function("robust")["deployments"].clone();
        let reasons = deployments.as_array().into_iter().flatten();
        let noted = reasons.filter(|one| one["state"] == "failed" && one["failure"].is_string());
        assert!(noted.count() >= 4, "{deployments:#}");
        platform.command(&["rm", "robust"]);
        assert_eq!(remains(&platform), Vec::<String>::new());
    }

    fn a_function_that_is_removed_lets_its_calls_finish(flavour: &Flavour) {
        let platform = Platform::new();
        platform.deploy("gone", &fixture(&flavour.runtime), &[]);
        let load = Load::start(&platform, "gone", "/", 1);
        let mut running = platform.connect();
        running.send(&request("gone", "/sleep?ms=1500").bytes()).expect("send");
        wait::until("the call runs", || platform.load("gone", "in_flight") >= 1);
        let removed = platform.command(&["rm", "gone"]);
        assert_eq!(removed.code, Some(0), "{}", removed.errors);
        assert_eq!(running.response().expect("a response").status(), 200);
        let outcomes = load.stop();
        assert_eq!(outcomes.with(200) + outcomes.with(404), outcomes.count(), "{outcomes:?}");
        assert_eq!(remains(&platform), Vec::<String>::new());
    }

    fn what_takes_too_much_memory_to_load_is_told_so(flavour: &Flavour) {
        if !has_groups("memory") {
            return;
        }
        let platform = Platform::new();
        let source = match flavour.runtime.as_str() {
            "node" => Source::node(
                "const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1));",
            ),
            _ => Source::of(&[("main.py", "all = []\nwhile True: all.append(b'x' * (1 << 20))")]),
        };
        let finished = platform.try_deploy("heavy", source.path(), &["--memory", "64MiB"]);
        assert_not_deployed(&finished, "out of memory", "a load without end");
    }

    fn what_was_never_deployed_does_not_exist(flavour: &Flavour) {
        let platform = Platform::new();
        let (_, files, reason) = broken(flavour)[0];
        let source = Source::of(files);
        let finished = platform.try_deploy("never", source.path(), &[]);
        assert_not_deployed(&finished, reason, "a first deployment");
        assert_eq!(platform.call("never", "/").status(), 404);
        assert_eq!(platform.ask("/v1/functions"), json!([]));
        assert_eq!(remains(&platform), Vec::<String>::new());
    }
}

#[test]
fn settings_stay_until_they_are_changed() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    let first = ["--env", "A=1", "--env", "B=2", "--memory", "128MiB", "--timeout", "7s"];
    platform.deploy("settled", &source, &first);
    platform.deploy("settled", &source, &["--max", "3", "--unset", "A"]);
    let settings = platform.function("settled")["settings"].clone();
    assert_eq!(settings["environment"], json!(["B"]));
    assert_eq!(settings["memory_bytes"], 128 << 20);
    assert_eq!((&settings["timeout"], &settings["max"]), (&json!("7s"), &json!(3)));
    assert_eq!(platform.call("settled", "/look").json()["environment"]["B"], "2");
    let wrong = platform.try_deploy("settled", &source, &["--min", "9"]);
    assert_eq!(wrong.code, Some(64), "{}", wrong.errors);
    platform.kill();
    platform.restart();
    assert_eq!(platform.function("settled")["settings"], settings);
}

/// A change of settings is a deployment of what is deployed: nothing is lost on the way, and the
/// history and the next daemon know it.
#[test]
fn settings_change_without_the_source() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    let first = ["--env", "VERSION=first", "--env", "B=2", "--timeout", "7s", "--min", "1"];
    platform.deploy("turned", &source, &first);
    let before = platform.function("turned");
    let load = Load::start(&platform, "turned", "/", 2);
    let set = |arguments: &[&str]| platform.command(&[&["set", "turned"], arguments].concat());
    for number in 0..3 {
        let variable = format!("VERSION={number}");
        let set = set(&["--env", &variable, "--memory", "128M", "--reset", "timeout"]);
        assert_eq!(set.code, Some(0), "{}", set.errors);
        assert_eq!(version(&platform, "turned"), number.to_string());
    }
    let outcomes = load.stop();
    assert_eq!(outcomes.others(), 0, "{outcomes:?}");
    assert!(outcomes.with(200) > 10, "{outcomes:?}");
    let after = platform.function("turned");
    assert_eq!(after["settings"]["environment"], json!(["B", "VERSION"]));
    assert_eq!(after["settings"]["memory_bytes"], 128 << 20);
    assert_eq!(
        (&after["settings"]["timeout"], &after["settings"]["min"]),
        (&json!("15s"), &json!(1))
    );
    assert_eq!(after["active"]["artifact"], before["active"]["artifact"], "the same code");
    let attempts = after["deployments"].as_array().expect("a list");
    let states: Vec<_> = attempts.iter().map(|attempt| &attempt["state"]).collect();
    assert_eq!(states, ["active", "superseded", "superseded", "superseded"]);
    assert_eq!(attempts[3]["id"], before["active"]["id"]);

    // What does not start with other settings changes nothing.
    let refused = set(&["--min", "99"]);
    assert_eq!(refused.code, Some(64), "{}", refused.errors);
    let unknown = platform.command(&["set", "turner", "--min", "0"]);
    assert_eq!(unknown.code, Some(66), "{}", unknown.errors);
    assert_eq!(platform.function("turned")["settings"], after["settings"]);
    platform.kill();
    platform.restart();
    assert_eq!(platform.function("turned")["settings"], after["settings"]);
    assert_eq!(version(&platform, "turned"), "2");
}

/// Also by what they would be: the code is started before anything changes.
#[test]
fn settings_with_which_it_does_not_start_change_nothing() {
    let platform = Platform::new();
    let source = Source::of(&match &*Flavour::any().runtime {
        "node" => [(
            "index.js",
            "if (process.env.BROKEN) throw new Error('not today');\n\
             module.exports = ({ res }) => res.json({ version: process.env.VERSION });",
        )],
        _ => [(
            "main.py",
            "import os\nif 'BROKEN' in os.environ: raise ValueError('not today')\n\
             def main(context): return context.res.json({'version': os.environ['VERSION']})",
        )],
    });
    platform.deploy("careful", source.path(), &["--env", "VERSION=good"]);
    let before = platform.function("careful");
    let set = platform.command(&["set", "careful", "--env", "BROKEN=1", "--env", "VERSION=bad"]);
    assert_not_deployed(&set, "not today", "other settings");
    let after = platform.function("careful");
    assert_eq!(after["settings"], before["settings"]);
    assert_eq!(after["active"], before["active"]);
    assert_eq!(after["deployments"][0]["state"], "failed");
    assert_eq!(version(&platform, "careful"), "good");
    let kept = platform.command(&["set", "careful", "--env", "VERSION=better"]);
    assert_eq!(kept.code, Some(0), "its artifact is still there: {}", kept.errors);
    assert_eq!(version(&platform, "careful"), "better");
}

/// Changes that come at once are all made, and none of them gives up a source that is being built.
#[test]
fn changes_at_once_are_all_made() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("changed", &source, &["--env", "VERSION=old"]);
    let codes: Vec<_> = thread::scope(|scope| {
        let deploy = || platform.try_deploy("changed", &source, &["--env", "VERSION=new"]);
        let set = |variable: &str| platform.command(&["set", "changed", "--env", variable]);
        let running = [
            scope.spawn(deploy),
            scope.spawn(move || set("A=1")),
            scope.spawn(move || set("B=2")),
            scope.spawn(move || set("C=3")),
        ];
        running.into_iter().map(|thread| thread.join().expect("no panic").code).collect()
    });
    assert_eq!(codes, [Some(0); 4]);
    let settings = platform.function("changed")["settings"].clone();
    assert_eq!(settings["environment"], json!(["A", "B", "C", "VERSION"]));
    assert_eq!(version(&platform, "changed"), "new");
}

/// What the interrupt of whoever deploys comes to.
#[test]
fn an_interrupted_deployment_is_cancelled_and_the_old_one_serves() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("given-up", &source, &["--env", "VERSION=good"]);
    let endless = Source::of(&[
        ("index.js", "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);"),
        ("main.py", "import time\ntime.sleep(1000)"),
    ]);
    let path = endless.path().to_str().expect("our paths are text");
    let runtime = &*Flavour::any().runtime;
    let line = ["deploy", path, "--name", "given-up", "--runtime", runtime];
    let mut command = platform.prepared(&line);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let child = child.expect("hearth runs");
    wait::until("it is being started", || {
        platform.ask("/v1/instances").as_array().is_some_and(|instances| {
            instances.iter().any(|instance| instance["state"] == "starting")
        })
    });
    Process::of(child.id()).expect("it runs").signal("INT");
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("it was cancelled") && told.contains("still does"), "{told}");
    assert_eq!(version(&platform, "given-up"), "good");
    let last = platform.function("given-up")["deployments"][0].clone();
    assert_eq!(
        (&last["state"], &last["failure"]),
        (&json!("failed"), &json!("start: it was cancelled"))
    );
    wait::until("what was being started is gone", || platform.instances("given-up").len() == 1);
    let id = last["id"].as_str().expect("an id");
    let again = platform.api("DELETE", &format!("/v1/functions/given-up/deployments/{id}"));
    assert_eq!(
        (again.status(), &again.json()["error"]["code"]),
        (404, &json!("unknown-deployment"))
    );
}

/// Mistakes and lacks that the source has nothing to do with.
#[test]
fn what_this_machine_cannot_give_is_refused_before_anything_is_built() {
    let platform = Platform::new();
    let flavour = Flavour::any();
    let source = fixture(&flavour.runtime);
    let missing = format!("{}-1.2", flavour.runtime);
    for (flags, code, says) in [
        (&["--runtime", "ruby"][..], 64, "hearth: no runtime `ruby`; there are: "),
        (&["--runtime", &missing], 69, " 1.2 on this machine"),
        (&["--memory", "999999GiB"], 64, "which is all that the machine has"),
        (&["--cpus", "1000"], 64, "which is all that the machine has"),
    ] {
        let finished = platform.try_deploy("refused", &source, flags);
        assert_eq!(finished.code, Some(code), "{flags:?}: {}", finished.errors);
        assert!(finished.errors.contains(says), "{flags:?}: {}", finished.errors);
    }
    assert_eq!(platform.ask("/v1/functions"), json!([]));
}

/// The log shows the end of an id, and calls of the same minute share the beginning.
#[test]
fn a_part_of_a_calls_id_names_the_call_if_it_is_the_only_one() {
    let platform = Platform::new();
    platform.deploy("named", &fixture(&Flavour::any().runtime), &[]);
    let ids = [(); 2].map(|()| {
        let response = platform.call("named", "/");
        response.head.one("x-hearth-call").expect("every reply has one").to_owned()
    });
    let logs = |part: &str| platform.command(&["logs", "named", "--call", part]);
    let shown = logs(&ids[1][28..]);
    assert_eq!(shown.code, Some(0), "{}", shown.errors);
    assert!(shown.output.contains(&ids[1]) && !shown.output.contains(&ids[0]), "{}", shown.output);
    assert!(logs(&ids[0]).output.contains(&ids[0]));
    let ambiguous = logs(&ids[0][..4]);
    assert_eq!(ambiguous.code, Some(64), "{}", ambiguous.errors);
    assert!(ids.iter().all(|id| ambiguous.errors.contains(id)), "{}", ambiguous.errors);
    let unknown = logs("ffffffff");
    assert_eq!(unknown.code, Some(66), "{}", unknown.errors);
}

/// Its first instance would start for ever.
#[test]
fn what_hangs_at_load_is_given_up_without_holding_up_others() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("hanging", &source, &["--env", "VERSION=good"]);
    let endless = Source::node("for (;;);");
    thread::scope(|scope| {
        let deploying = scope.spawn(|| platform.try_deploy("hanging", endless.path(), &[]));
        wait::until("it is being started", || {
            platform.ask("/v1/instances").as_array().is_some_and(|instances| {
                instances.iter().any(|instance| instance["state"] == "starting")
            })
        });
        assert_eq!(version(&platform, "hanging"), "good");
        platform.deploy("other", &source, &[]);
        assert_eq!(platform.call("other", "/").status(), 200);
        platform.kill();
        assert_ne!(deploying.join().expect("no panic").code, Some(0));
    });
    platform.restart();
    assert_eq!(version(&platform, "hanging"), "good");
}

#[test]
fn two_deployments_of_a_function_come_one_after_the_other() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    let codes: Vec<_> = thread::scope(|scope| {
        let deploy = |number: u32| {
            let variable = format!("VERSION={number}");
            platform.try_deploy("twice", &source, &["--env", &variable]).code
        };
        let running: Vec<_> = (1..4).map(|number| scope.spawn(move || deploy(number))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(codes, [Some(0); 3]);
    let deployments = platform.function("twice")["deployments"].clone();
    let states: Vec<_> =
        deployments.as_array().into_iter().flatten().map(|one| one["state"].clone()).collect();
    let active = states.iter().filter(|state| **state == "active").count();
    assert_eq!((states.len(), active), (3, 1), "{deployments:#}");
    assert_ne!(version(&platform, "twice"), "");
}

#[test]
fn functions_are_deployed_side_by_side() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    let names = ["a", "b", "c", "d"];
    thread::scope(|scope| {
        for name in names {
            let (platform, source) = (&platform, &source);
            scope.spawn(move || {
                platform.deploy(name, source, &["--env", &format!("VERSION={name}")]);
            });
        }
    });
    for name in names {
        assert_eq!(version(&platform, name), name);
    }
}

#[test]
fn a_client_that_leaves_while_it_sends_leaves_nothing() {
    let platform = Platform::new();
    let token = platform.token();
    for length in [10, 200, 4000] {
        let head = format!(
            "POST /v1/functions/half/deployments HTTP/1.1\r\nhost: 127.0.0.1\r\n\
             authorization: Bearer {token}\r\ncontent-length: 1000000\r\n\
             content-type: multipart/form-data; boundary=x\r\n\r\n\
             --x\r\ncontent-disposition: form-data; name=\"source\"; filename=\"a\"\r\n\r\n"
        );
        let mut connection = platform.connect();
        connection.send(head.as_bytes()).expect("send");
        connection.send(&vec![b'x'; length]).expect("send");
        drop(connection);
    }
    wait::until("nothing is left", || remains(&platform).is_empty());
    assert_eq!(platform.ask("/v1/functions"), json!([]));
}

#[test]
fn a_deployment_goes_on_although_nobody_waits_for_it() {
    let platform = Platform::new();
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("left", &source, &["--env", "VERSION=old"]);
    let slow = Source::node(
        "const end = Date.now() + 1500; while (Date.now() < end);\n\
         module.exports = ({ res }) => res.json({ version: 'new' });",
    );
    let arguments = ["deploy", slow.path().to_str().expect("text"), "--name", "left"];
    let mut deploying = platform.prepared(&arguments).spawn().expect("hearth runs");
    wait::until("it is being made", || {
        let deployments = platform.function("left")["deployments"].clone();
        deployments.as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "pending"))
    });
    deploying.kill().expect("our child");
    deploying.wait().expect("our child");
    wait::until("the new one serves", || version(&platform, "left") == "new");
}
