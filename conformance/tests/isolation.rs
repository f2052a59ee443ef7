//! What functions see of each other, and of those who called them before: nothing.

use std::{
    fs,
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
};

use conformance::{
    client::Connection,
    on_each_runtime,
    platform::{Platform, Source, fixture, is_sandboxed, request, skip},
    wait,
};
use serde_json::Value;

const SECRET: &str = "a-value-of-somebody-else";

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn running_stream(platform: &Platform, name: &str) -> Connection {
    let mut connection = platform.connect();
    connection.send(&request(name, "/stream").bytes()).expect("send");
    connection.head().expect("a head");
    connection.chunk().expect("a piece");
    connection
}

on_each_runtime! {
    fn an_instance_sees_nothing_of_another_function(flavour: &Flavour) {
        if !is_sandboxed("isolation") {
            return;
        }
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        let variable = format!("SECRET={SECRET}");
        platform.deploy("first", &source, &["--env", &variable]);
        assert_eq!(platform.call("first", "/write?path=/tmp/ours").status(), 204);
        // Not one look but several: instances come from spares that were made at different times.
        for serial in 0..3 {
            let name = format!("second-{serial}");
            platform.deploy(&name, &source, &["--env", "OWN=1"]);
            let seen = platform.call(&name, "/look").json();
            let text = seen.to_string();
            assert_eq!(seen["environment"]["OWN"], "1");
            assert!(!text.contains(SECRET), "{text}");
            assert!(!texts(&seen["temporary"]).contains(&"ours".to_owned()), "{text}");
            let own = texts(&seen["processes"]);
            assert!(own.len() <= 3, "processes of others: {own:?}");
            assert!(!text.contains("hearth up") && !text.contains(&platform.token()), "{text}");
            let names: Vec<String> = seen["environment"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect();
            assert!(!names.iter().any(|name| name.contains("HEARTH")), "{names:?}");
        }
        let mine = platform.call("first", "/look").json();
        assert!(texts(&mine["temporary"]).contains(&"ours".to_owned()), "it is still there: {mine}");
    }

    fn code_is_not_writable_and_stays_the_same(flavour: &Flavour) {
        if !is_sandboxed("code that cannot be written") {
            return;
        }
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        platform.deploy("one", &source, &["--idle", "1s"]);
        // Same source, same artifact: what one function writes beside its code is not the other's.
        platform.deploy("same", &source, &[]);
        platform.call("one", "/write?path=/usr/local/server/src/function/planted");
        let seen = platform.call("same", "/look").json();
        assert!(!texts(&seen["code"]).contains(&"planted".to_owned()), "{seen}");
        wait::until("the instance is gone", || platform.instances("one").is_empty());
        let seen = platform.call("one", "/look").json();
        assert!(!texts(&seen["code"]).contains(&"planted".to_owned()), "{seen}");
    }

    fn a_client_that_leaves_ends_its_stream(flavour: &Flavour) {
        let platform = Platform::new();
        platform.deploy("stream", &fixture(&flavour.runtime), &[]);
        for count in 1..4 {
            let stream = running_stream(&platform, "stream");
            wait::until("the call runs", || platform.load("stream", "in_flight") == 1);
            drop(stream);
            wait::until("the call is over", || platform.load("stream", "in_flight") == 0);
            wait::until("the function knows", || {
                platform.call("stream", "/closed").json() == count
            });
        }
        assert_eq!(platform.instances("stream").len(), 1, "the instance goes on");
    }

    fn a_client_that_leaves_before_the_answer_gives_its_place_back(flavour: &Flavour) {
        let platform = Platform::new();
        let settings = ["--concurrency", "1", "--max", "1", "--timeout", "30s"];
        platform.deploy("place", &fixture(&flavour.runtime), &settings);
        let mut call = platform.connect();
        call.send(&request("place", "/sleep?ms=25000").bytes()).expect("send");
        wait::until("the call runs", || platform.load("place", "in_flight") == 1);
        drop(call);
        let answer = platform.call("place", "/");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        wait::until("the log has how both ended", || {
            let log = platform.log("place");
            let ends: Vec<_> = log.iter().filter(|line| line["event"] == "end").collect();
            ends.len() == 2 && ends.iter().any(|end| end["outcome"] == "cancelled")
        });
    }

    fn logs_of_functions_do_not_mix(flavour: &Flavour) {
        let platform = Platform::new();
        let source = fixture(&flavour.runtime);
        platform.deploy("quiet", &source, &[]);
        platform.deploy("loud", &source, &[]);
        assert!(platform.call("quiet", "/sleep?ms=1").status() == 200);
        assert!(platform.call("loud", "/flood?kib=300").status() < 300);
        assert!(platform.call("loud", "/flood?kib=3000").status() < 300);
        assert_eq!(platform.logged("quiet"), ["began", "finished"]);
        let loud = platform.logged("loud");
        assert!(loud.iter().any(|text| text.starts_with("xxxx")), "{} lines", loud.len());
        assert_eq!(platform.call("quiet", "/").status(), 200);
    }
}

/// A tree with everything in it.
fn all_below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    if path.symlink_metadata().expect("there").is_dir() {
        let entries = fs::read_dir(path).expect("a directory");
        found.extend(entries.flat_map(|entry| all_below(&entry.expect("an entry").path())));
    }
    found
}

#[test]
fn code_belongs_to_no_person_and_what_a_person_owned_is_not_served() {
    const PERSON: u32 = 1000;
    if !is_sandboxed("owners of code") {
        return;
    }
    if fs::metadata("/proc/self").expect("there").uid() != 0 {
        return skip("owners of code: not root");
    }
    let platform = Platform::new();
    let source = Source::node(
        "module.exports = (c) => c.res.text('as deployed ' + \
        require('fs').statSync(__filename).uid)",
    );
    platform.deploy("code", source.path(), &[]);
    let answer = platform.call("code", "/").text();
    assert_eq!(answer, "as deployed 1000", "inside, the code is the function's own");
    let artifacts = platform.data().join("artifacts");
    let trees: Vec<_> =
        fs::read_dir(&artifacts).expect("there").map(|entry| entry.expect("one").path()).collect();
    assert_eq!(trees.len(), 1);
    for path in all_below(&trees[0]) {
        let owner = path.symlink_metadata().expect("there");
        assert!(owner.uid() >= 0x7000_0000, "{} of {}", path.display(), owner.uid());
    }

    // As an older version left it, and a person then changed it.
    platform.kill();
    for path in all_below(&trees[0]) {
        lchown(&path, Some(PERSON), Some(PERSON)).expect("given away");
    }
    fs::write(trees[0].join("index.js"), "module.exports = (c) => c.res.text('replaced')")
        .expect("written");
    platform.restart();
    assert_eq!(platform.call("code", "/").text(), "as deployed 1000");
    for path in all_below(&artifacts).into_iter().skip(1) {
        assert_ne!(path.symlink_metadata().expect("there").uid(), PERSON, "{}", path.display());
    }
}
