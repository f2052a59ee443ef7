//! As many instances as calls need: from none to the most, and back.

use std::{collections::HashSet, thread};

use conformance::{
    client::Response,
    flavour::Flavour,
    load::{Load, Outcomes, burst},
    on_each_runtime,
    platform::{Platform, Source, fixture, has_groups, request},
    wait,
};
use serde_json::Value;

/// The instances that answered.
fn answered(outcomes: &Outcomes) -> HashSet<String> {
    let answers = outcomes.bodies.keys();
    answers.map(|body| instance_in(&serde_json::from_str(body).expect("JSON"))).collect()
}

fn instance_in(answer: &Value) -> String {
    answer["instance"].as_str().expect("each answer names its instance").to_owned()
}

fn retry_after(response: &Response) -> u64 {
    let value = response.head.one("retry-after").expect("a header Retry-After");
    value.parse().expect("whole seconds")
}

fn serving(platform: &Platform, name: &str) -> u64 {
    platform.load(name, "serving")
}

on_each_runtime! {
    fn a_burst_on_a_cold_function_gets_what_it_needs_and_no_error(flavour: &Flavour) {
        let platform = Platform::new();
        let settings = ["--concurrency", "50", "--max", "10", "--idle", "1m"];
        platform.deploy("cold", &fixture(&flavour.runtime), &settings);
        let outcomes = burst(&platform, "cold", "/sleep?ms=1500", 200);
        assert_eq!(outcomes.with(200), 200, "{:?} {:?}", outcomes.statuses, outcomes.reasons);
        let instances = answered(&outcomes).len();
        assert!((2..=4).contains(&instances), "{instances} instances for 200 calls of 50");
        assert!(serving(&platform, "cold") <= 4);
    }

    fn a_function_for_one_call_at_once_has_no_more_instances_than_its_most(flavour: &Flavour) {
        let platform = Platform::new();
        let settings = ["--concurrency", "1", "--max", "3"];
        platform.deploy("single", &fixture(&flavour.runtime), &settings);
        let outcomes = burst(&platform, "single", "/sleep?ms=300", 12);
        assert_eq!(outcomes.with(200), 12, "{:?} {:?}", outcomes.statuses, outcomes.reasons);
        assert_eq!(answered(&outcomes).len(), 3);
        assert_eq!(serving(&platform, "single"), 3);
    }

    fn instances_differ_in_what_is_random(flavour: &Flavour) {
        let platform = Platform::new();
        platform.deploy("random", &fixture(&flavour.runtime), &["--concurrency", "1"]);
        let outcomes = burst(&platform, "random", "/sleep?ms=700", 4);
        let answers: Vec<Value> =
            outcomes.bodies.keys().map(|body| serde_json::from_str(body).expect("JSON")).collect();
        let guesses: HashSet<String> =
            answers.iter().map(|answer| answer["guess"].to_string()).collect();
        assert!(answers.len() >= 2, "{answers:?}");
        assert_eq!(guesses.len(), answers.len(), "{answers:?}");
    }

    fn instances_that_are_kept_are_there_without_a_call(flavour: &Flavour) {
        if !has_groups("instances that are kept") {
            return;
        }
        let platform = Platform::new();
        let settings = ["--min", "2", "--idle", "1s"];
        platform.deploy("kept", &fixture(&flavour.runtime), &settings);
        wait::until("two instances are there", || serving(&platform, "kept") == 2);
        let before: HashSet<_> = platform.instances("kept").into_iter().collect();
        platform.kill_instances("kept");
        wait::until("two others are there", || {
            let now: HashSet<_> = platform.instances("kept").into_iter().collect();
            now.is_disjoint(&before) && serving(&platform, "kept") == 2
        });
        platform.kill();
        platform.restart();
        wait::until("they are there after a restart", || serving(&platform, "kept") == 2);
    }

    fn a_function_that_nobody_calls_goes_to_zero_and_comes_back(flavour: &Flavour) {
        let platform = Platform::new();
        platform.deploy("idle", &fixture(&flavour.runtime), &["--idle", "1s"]);
        let first = instance_in(&platform.call("idle", "/").json());
        wait::until("no instance is left", || platform.instances("idle").is_empty());
        let second = instance_in(&platform.call("idle", "/").json());
        assert_ne!(first, second);
    }

    fn one_function_over_its_memory_is_told_so_and_disturbs_no_other(flavour: &Flavour) {
        if !has_groups("memory") {
            return;
        }
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        platform.deploy("large", &source, &["--memory", "512MiB"]);
        platform.deploy("small", &source, &["--memory", "64MiB"]);
        let load = Load::start(&platform, "large", "/", 1);
        assert_eq!(platform.call("large", "/hoard?mib=200").status(), 200);
        let response = platform.call("small", "/hoard?mib=200");
        assert_eq!(response.status(), 502, "{}", response.text());
        let id = response.head.one("x-hearth-call").expect("the call's id").to_owned();
        let log = platform.log("small");
        let end = log.iter().find(|line| line["event"] == "end" && line["call"] == id);
        let why = end.map(|end| end["error"].to_string()).unwrap_or_default();
        assert!(why.contains("ran out of memory"), "{log:#?}");
        assert_eq!(platform.call("small", "/").status(), 200);
        let outcomes = load.stop();
        assert_eq!(outcomes.others(), 0, "{outcomes:?}");
    }

    fn a_function_that_crashes_at_each_call_backs_off_and_says_why(flavour: &Flavour) {
        let platform = Platform::new();
        platform.deploy("crashing", &fixture(&flavour.runtime), &[]);
        let mut refused = None;
        for _ in 0..20 {
            let response = platform.call("crashing", "/crash");
            match response.status() {
                502 => {}
                503 => {
                    refused = Some(response);
                    break;
                }
                other => panic!("{other}: {}", response.text()),
            }
        }
        let refused = refused.expect("it is not started over and over");
        assert!(retry_after(&refused) >= 1);
        assert_eq!(refused.json()["error"]["code"], "backing-off", "{}", refused.text());
        let shown = platform.command(&["show", "crashing"]).output;
        assert!(shown.contains("exited with status 3"), "{shown}");
        let logs = platform.command(&["logs", "crashing"]).output;
        assert!(logs.contains("exited with status 3"), "{logs}");
        wait::until("it works once it does not crash any more", || {
            platform.call("crashing", "/").status() == 200
        });
        let trouble = platform.function("crashing")["load"]["trouble"].clone();
        assert_eq!(trouble, Value::Null);
    }
}

#[test]
fn a_full_host_gives_the_place_of_whoever_was_not_called_for_longest() {
    let platform = Platform::with(["--max-instances", "3"]);
    let source = fixture(&Flavour::any().runtime);
    for name in ["one", "two", "three", "four"] {
        platform.deploy(name, &source, &[]);
    }
    for name in ["one", "two", "three"] {
        assert_eq!(platform.call(name, "/").status(), 200);
    }
    // Each function is an order of its own, newest last: two, three, one.
    assert_eq!(platform.call("one", "/").status(), 200);
    assert_eq!(platform.call("four", "/").status(), 200);
    wait::until("one had to go", || platform.instances("two").is_empty());
    for name in ["one", "three", "four"] {
        assert_eq!(platform.instances(name).len(), 1, "{name} keeps its instance");
    }
    let status = platform.ask("/v1/status");
    assert!(status["instances"].as_u64().is_some_and(|count| count <= 3), "{status}");
    for name in ["two", "one", "three", "four", "two"] {
        assert_eq!(platform.call(name, "/").status(), 200, "{name}");
    }
}

#[test]
fn a_host_that_is_busy_with_others_says_when_to_come_back() {
    let platform = Platform::with(["--max-instances", "1"]);
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("other", &source, &["--timeout", "1s"]);
    platform.deploy("long", &source, &[]);
    let mut long = platform.connect();
    long.send(&request("long", "/sleep?ms=2500").bytes()).expect("send");
    wait::until("the call runs", || platform.load("long", "in_flight") == 1);
    let refused = platform.call("other", "/");
    assert_eq!(refused.status(), 429, "{}", refused.text());
    assert!(retry_after(&refused) >= 1);
    assert_eq!(long.response().expect("a response").status(), 200);
    assert_eq!(platform.call("other", "/").status(), 200);
}

#[test]
fn long_calls_of_one_function_leave_a_place_for_others() {
    let platform = Platform::with(["--max-instances", "4"]);
    let source = fixture(&Flavour::any().runtime);
    let settings = ["--concurrency", "1", "--max", "8", "--timeout", "2m"];
    platform.deploy("long", &source, &settings);
    platform.deploy("other", &source, &[]);
    let mut long: Vec<_> = (0..8)
        .map(|_| {
            let mut call = platform.connect();
            call.send(&request("long", "/sleep?ms=60000").bytes()).expect("send");
            call
        })
        .collect();
    wait::until("as many run as may", || platform.load("long", "in_flight") == 3);
    for _ in 0..3 {
        assert_eq!(platform.call("other", "/").status(), 200);
    }
    // A deployment finds a place as well.
    platform.deploy("new", &source, &[]);
    assert_eq!(platform.call("new", "/").status(), 200);
    assert_eq!(platform.load("long", "in_flight"), 3, "no running call was cut off");
    long.clear();
}

#[test]
fn what_cannot_be_kept_is_refused_with_the_setting_to_change() {
    let platform = Platform::with(["--max-instances", "4"]);
    let source = fixture(&Flavour::any().runtime);
    platform.deploy("kept", &source, &["--min", "2"]);
    let refused = platform.try_deploy("other", &source, &["--min", "2"]);
    assert_eq!(refused.code, Some(64), "{}", refused.errors);
    for part in ["--min 2", "--max-instances", "kept: 2", "at most `--min 1`"] {
        assert!(refused.errors.contains(part), "{part}: {}", refused.errors);
    }
    let refused = platform.try_deploy("kept", &source, &["--min", "4"]);
    assert_eq!(refused.code, Some(64), "{}", refused.errors);
    let refused = platform.try_deploy("kept", &source, &["--min", "3", "--max", "2"]);
    assert_eq!(refused.code, Some(64), "{}", refused.errors);
    assert!(refused.errors.contains("at most max, which is 2"), "{}", refused.errors);
    platform.deploy("other", &source, &["--min", "1"]);
    // There is a place left, also to replace what is kept.
    for name in ["new", "kept", "other"] {
        platform.deploy(name, &source, &[]);
        assert_eq!(platform.call(name, "/").status(), 200);
    }
}

#[test]
fn a_function_that_is_busy_says_when_to_come_back() {
    let platform = Platform::new();
    let settings = ["--concurrency", "1", "--max", "1", "--timeout", "2s"];
    platform.deploy("one", &fixture(&Flavour::any().runtime), &settings);
    // Within two seconds one after the other: two of them, and those that are cut short.
    let outcomes = burst(&platform, "one", "/sleep?ms=800", 8);
    assert!(outcomes.with(200) >= 1 && outcomes.with(429) >= 2, "{outcomes:?}");
    assert_eq!(outcomes.with(200) + outcomes.with(504) + outcomes.with(429), 8, "{outcomes:?}");
}

#[test]
fn many_cold_functions_at_once_are_all_served() {
    const FUNCTIONS: usize = 8;
    let platform = Platform::with(["--max-instances", "4"]);
    let source = Source::node("module.exports = ({ res }) => res.text(process.env.NAME);");
    let names: Vec<String> = (0..FUNCTIONS).map(|serial| format!("many-{serial}")).collect();
    for name in &names {
        platform.deploy(name, source.path(), &["--env", &format!("NAME={name}")]);
    }
    thread::scope(|scope| {
        for name in &names {
            let platform = &platform;
            scope.spawn(move || {
                for _ in 0..3 {
                    let response = platform.call(name, "/");
                    assert_eq!((response.status(), response.text()), (200, name.clone()));
                }
            });
        }
    });
}
