//! A daemon that is killed in the middle of its writes leaves a catalog that is whole.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use catalog::{Blobs, Catalog, DeploymentState, NewDeployment, SqliteCatalog};
use model::{FunctionName, Settings};
use uuid::Uuid;

const DIRECTORY: &str = "CATALOG_TEST_DIRECTORY";

/// Not a test by itself: the process that is killed. It prints each deployment that is active.
#[test]
fn child_deploys_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let catalog = SqliteCatalog::open(directory).expect("a catalog");
    let blobs = Blobs::open(&directory.join("blobs")).expect("a store");
    for number in 0u64.. {
        let id = Uuid::now_v7();
        let new = NewDeployment {
            id,
            function: function(),
            runtime: "node-22".into(),
            entrypoint: "index.js".into(),
            settings: Settings::default(),
            created_at: number,
        };
        catalog.begin(&new).expect("begun");
        let (artifact, bytes) = blobs.put(&id.as_bytes()[..]).expect("stored");
        catalog.set_artifact(id, &artifact, bytes).expect("an artifact");
        catalog.activate(id).expect("active");
        // Behind a line end of the test harness, which a parent does not take for an id.
        println!("\n{id}");
        std::io::stdout().flush().expect("a parent");
    }
}

fn function() -> FunctionName {
    "hello".parse().expect("a name")
}

fn spawn(directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "child_deploys_until_it_is_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child")
}

#[test]
fn what_was_promised_is_there_after_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..12 {
        let mut child = spawn(directory.path());
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut ids = lines.map_while(Result::ok).filter_map(|line| line.parse::<Uuid>().ok());
        let mut last = ids.by_ref().nth(round % 5).expect("a deployment");
        child.kill().expect("killed");
        child.wait().expect("ended");
        last = ids.last().unwrap_or(last);
        check(directory.path(), last);
    }
}

fn check(directory: &Path, promised: Uuid) {
    let catalog = SqliteCatalog::open(directory).expect("a catalog");
    let blobs = Blobs::open(&directory.join("blobs")).expect("a store");
    let function = catalog.function(&function()).expect("an answer").expect("there");
    assert_eq!(function.active.state, DeploymentState::Active);
    // Whether a later one is active that the child did not live to print.
    assert!(function.active.id >= promised, "{promised} was active");
    for artifact in catalog.artifacts_in_use().expect("a list") {
        assert!(blobs.contains(&artifact), "the catalog refers to {artifact}");
    }
    catalog.fail_interrupted().expect("an answer");
    drop(catalog);

    let connection = rusqlite::Connection::open(directory.join("catalog.db")).expect("a file");
    let integrity = connection.pragma_query_value(None, "integrity_check", |row| row.get(0));
    assert_eq!(integrity, Ok("ok".to_owned()));
}
