use std::os::unix::fs::PermissionsExt;

use model::Settings;

use super::{migrate::MIGRATIONS, *};
use crate::{DeploymentState, KEPT_DEPLOYMENTS};

struct Lab {
    directory: tempfile::TempDir,
    catalog: SqliteCatalog,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = SqliteCatalog::open(directory.path()).expect("a catalog");
        Self { directory, catalog }
    }

    /// As after a restart of the daemon.
    fn reopened(self) -> Self {
        let Self { directory, catalog } = self;
        drop(catalog);
        let catalog = SqliteCatalog::open(directory.path()).expect("a catalog");
        Self { directory, catalog }
    }

    fn begin(&self, function: &str, created_at: u64) -> Uuid {
        let new = deployment(function, created_at);
        self.catalog.begin(&new).expect("begun");
        new.id
    }

    fn deploy(&self, function: &str, created_at: u64) -> Uuid {
        let id = self.begin(function, created_at);
        self.catalog.set_artifact(id, &Digest::of(id.as_bytes()), 5).expect("an artifact");
        self.catalog.activate(id).expect("active");
        id
    }

    fn states(&self, function: &str) -> Vec<(u64, DeploymentState)> {
        let deployments = self.catalog.deployments(&name(function), 99).expect("deployments");
        deployments.iter().map(|deployment| (deployment.created_at, deployment.state)).collect()
    }
}

pub(super) fn name(text: &str) -> FunctionName {
    text.parse().expect("a name")
}

pub(super) fn deployment(function: &str, created_at: u64) -> NewDeployment {
    let variables = [("TOKEN".to_owned(), format!("of {created_at}"))].into();
    NewDeployment {
        id: Uuid::now_v7(),
        function: name(function),
        runtime: "node-22".into(),
        entrypoint: "index.js".into(),
        settings: Settings { environment: variables, ..Settings::default() },
        created_at,
    }
}

#[test]
fn a_function_exists_from_its_first_activation() {
    let lab = Lab::new();
    let id = lab.begin("hello", 1);
    assert_eq!(lab.catalog.function(&name("hello")).expect("an answer"), None);
    assert_eq!(lab.catalog.functions().expect("a list"), []);

    lab.catalog.set_artifact(id, &Digest::of(b"code"), 4).expect("an artifact");
    let active = lab.catalog.activate(id).expect("active");
    assert_eq!(active.active.id, id);
    assert_eq!(active.active.artifact, Some(Digest::of(b"code")));
    assert_eq!(active.active.artifact_bytes, 4);
    assert_eq!(active.settings, deployment("hello", 1).settings);
    assert_eq!((active.created_at, active.updated_at), (1, 1));

    let lab = lab.reopened();
    assert_eq!(lab.catalog.function(&name("hello")).expect("an answer"), Some(active.clone()));
    assert_eq!(lab.catalog.functions().expect("a list"), [active]);
}

#[test]
fn an_activation_supersedes_the_last_one() {
    use DeploymentState::{Active, Superseded};
    let lab = Lab::new();
    lab.deploy("hello", 1);
    lab.deploy("other", 2);
    let id = lab.deploy("hello", 3);
    assert_eq!(lab.states("hello"), [(3, Active), (1, Superseded)]);
    assert_eq!(lab.states("other"), [(2, Active)]);
    let function = lab.catalog.function(&name("hello")).expect("an answer").expect("there");
    assert_eq!(function.active.id, id);
    assert_eq!((function.created_at, function.updated_at), (1, 3));
    assert_eq!(function.settings, deployment("hello", 3).settings);
}

#[test]
fn a_failed_deployment_changes_nothing_but_can_be_read() {
    let lab = Lab::new();
    let serving = lab.deploy("hello", 1);
    for (function, expected) in [("hello", Some(serving)), ("new", None)] {
        let id = lab.begin(function, 2);
        lab.catalog.fail(id, "it does not build").expect("failed");
        let found = lab.catalog.function(&name(function)).expect("an answer");
        assert_eq!(found.map(|function| function.active.id), expected, "{function}");
        let newest = lab.catalog.deployments(&name(function), 1).expect("deployments");
        assert_eq!(newest[0].state, DeploymentState::Failed);
        assert_eq!(newest[0].failure.as_deref(), Some("it does not build"));
    }
}

#[test]
fn only_a_pending_deployment_changes() {
    let lab = Lab::new();
    let active = lab.deploy("hello", 1);
    let bare = lab.begin("hello", 2);
    let unknown = Uuid::nil();
    let artifact = Digest::of(b"x");
    for (id, expected) in [(active, "is active already"), (unknown, "no deployment")] {
        let errors = [
            lab.catalog.set_artifact(id, &artifact, 1).expect_err("refused"),
            lab.catalog.fail(id, "why").expect_err("refused"),
            lab.catalog.activate(id).expect_err("refused"),
        ];
        for error in errors {
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    let error = lab.catalog.activate(bare).expect_err("nothing was built");
    assert!(matches!(error, CatalogError::NoArtifact(_)), "{error}");
    assert_eq!(lab.states("hello").last(), Some(&(1, DeploymentState::Active)));
}

#[test]
fn a_clock_that_was_set_back_does_not_change_which_deployment_is_newest() {
    let lab = Lab::new();
    for created_at in [100, 200, 50] {
        let id = lab.begin("hello", created_at);
        lab.catalog.fail(id, "no").expect("failed");
    }
    let newest_first: Vec<_> = lab.states("hello").into_iter().map(|(at, _)| at).collect();
    assert_eq!(newest_first, [50, 200, 100]);
}

#[test]
fn as_many_deployments_are_kept_as_said_and_the_active_one_always() {
    use DeploymentState::{Active, Failed, Pending};
    let lab = Lab::new();
    lab.deploy("hello", 1);
    let pending = lab.begin("hello", 2);
    for created_at in 3..40 {
        let id = lab.begin("hello", created_at);
        lab.catalog.fail(id, "no").expect("failed");
    }
    let states = lab.states("hello");
    assert_eq!(states.len(), KEPT_DEPLOYMENTS);
    assert_eq!(states[..2], [(39, Failed), (38, Failed)]);
    assert_eq!(states[KEPT_DEPLOYMENTS - 2..], [(2, Pending), (1, Active)]);
    lab.catalog.set_artifact(pending, &Digest::of(b"x"), 1).expect("still there");
}

#[test]
fn what_a_killed_daemon_left_pending_has_failed() {
    let lab = Lab::new();
    let active = lab.deploy("hello", 1);
    let pending = lab.begin("hello", 2);
    let lab = lab.reopened();
    let interrupted = lab.catalog.fail_interrupted().expect("an answer");
    assert_eq!(interrupted.iter().map(|it| it.id).collect::<Vec<_>>(), [pending]);
    let why = interrupted[0].failure.as_deref().expect("a reason");
    assert!(why.contains("daemon ended"), "{why}");
    assert_eq!(lab.catalog.fail_interrupted().expect("an answer"), []);
    let function = lab.catalog.function(&name("hello")).expect("an answer").expect("there");
    assert_eq!(function.active.id, active);
}

#[test]
fn nothing_is_left_of_a_removed_function() {
    let lab = Lab::new();
    lab.deploy("hello", 1);
    lab.deploy("hello", 2);
    lab.deploy("other", 3);
    lab.catalog.put_segments(&[segment("hello", 1, 9), segment("other", 1, 9)]).expect("put");
    assert!(lab.catalog.remove(&name("hello")).expect("removed"));
    assert!(!lab.catalog.remove(&name("hello")).expect("gone already"));
    assert_eq!(lab.states("hello"), []);
    assert_eq!(lab.catalog.segments(&name("hello"), 0).expect("segments"), []);
    assert_eq!(lab.catalog.segments(&name("other"), 0).expect("segments").len(), 1);
    let left: Vec<_> = lab.catalog.functions().expect("a list");
    assert_eq!(left.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["other"]);
}

#[test]
fn artifacts_of_active_and_pending_deployments_are_in_use() {
    let lab = Lab::new();
    lab.deploy("hello", 1);
    let active = lab.deploy("hello", 2);
    let pending = lab.begin("hello", 3);
    lab.catalog.set_artifact(pending, &Digest::of(b"pending"), 1).expect("an artifact");
    let failed = lab.begin("hello", 4);
    lab.catalog.set_artifact(failed, &Digest::of(b"failed"), 1).expect("an artifact");
    lab.catalog.fail(failed, "no").expect("failed");

    let mut expected = vec![Digest::of(active.as_bytes()), Digest::of(b"pending")];
    let mut in_use = lab.catalog.artifacts_in_use().expect("a list");
    expected.sort_unstable();
    in_use.sort_unstable();
    assert_eq!(in_use, expected);
}

fn segment(function: &str, number: u64, last_at: u64) -> Segment {
    Segment { function: name(function), number, first_at: 1, last_at, bytes: 100, lines: 3 }
}

#[test]
fn segments_are_found_by_function_and_time() {
    let lab = Lab::new();
    let all = [segment("a", 1, 10), segment("a", 2, 20), segment("a", 10, 30)];
    lab.catalog.put_segments(&[&all[..], &[segment("b", 1, 99)]].concat()).expect("put");
    let numbers = |since| -> Vec<u64> {
        let found = lab.catalog.segments(&name("a"), since).expect("segments");
        found.iter().map(|segment| segment.number).collect()
    };
    for (since, expected) in
        [(0, &[1, 2, 10][..]), (10, &[1, 2, 10]), (11, &[2, 10]), (31, &[]), (u64::MAX, &[])]
    {
        assert_eq!(numbers(since), expected, "since {since}");
    }
    lab.catalog.put_segments(&[segment("a", 10, 40)]).expect("replaced");
    assert_eq!(numbers(31), [10]);
    lab.catalog.remove_segments(&name("a"), &[1, 10, 77]).expect("removed");
    assert_eq!(numbers(0), [2]);
}

#[test]
fn values_of_variables_are_for_the_owner_only() {
    let lab = Lab::new();
    lab.deploy("hello", 1);
    let mut files = 0;
    for entry in lab.directory.path().read_dir().expect("a directory") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
        files += 1;
    }
    assert_eq!(files, 2, "the database and its log");
}

#[test]
fn damage_is_told_without_values_of_variables() {
    let lab = Lab::new();
    lab.deploy("hello", 1);
    let sql =
        r#"UPDATE deployments SET settings = '{"environment": {"TOKEN": {"a": "change-me"}}}'"#;
    lab.catalog.connection().execute(sql, []).expect("damaged");
    let error = lab.catalog.functions().expect_err("damaged");
    assert!(matches!(error, CatalogError::Damaged { what: "settings", .. }), "{error}");
    assert!(!format!("{error:?}").contains("change-me"), "{error:?}");
}

#[test]
fn a_second_daemon_is_told_that_the_catalog_is_in_use() {
    let lab = Lab::new();
    let error = SqliteCatalog::open(lab.directory.path()).expect_err("in use");
    assert!(matches!(error, CatalogError::InUse), "{error:?}");
    lab.deploy("hello", 1);
    lab.reopened();
}

#[test]
fn every_older_version_is_brought_up_to_date() {
    for version in 0..=MIGRATIONS.len() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut old = Connection::open(directory.path().join(FILE)).expect("a file");
        migrate::run(&mut old, &MIGRATIONS[..version]).expect("an old catalog");
        if version >= 1 {
            insert_into_first_version(&old);
        }
        drop(old);

        let catalog = SqliteCatalog::open(directory.path()).expect("brought up to date");
        let found = catalog.functions().expect("a list");
        assert_eq!(found.len(), usize::from(version >= 1), "of version {version}");
        catalog.put_segments(&[segment("hello", 1, 1)]).expect("as new as any");
        let newest = catalog.connection().pragma_query_value(None, "user_version", |it| it.get(0));
        assert_eq!(newest, Ok(i64::try_from(MIGRATIONS.len()).expect("few")));
    }
}

fn insert_into_first_version(connection: &Connection) {
    let settings = serde_json::to_string(&Settings::default()).expect("JSON");
    let id = Uuid::now_v7().to_string();
    let sql = "INSERT INTO deployments (id, function, state, runtime, entrypoint, settings,
         artifact, artifact_bytes, created_at)
         VALUES (?1, 'hello', 'active', 'node-22', 'index.js', ?2, ?3, 1, 1)";
    let artifact = Digest::of(b"x").to_string();
    connection.execute(sql, [&id, &settings, &artifact]).expect("a deployment");
    connection
        .execute("INSERT INTO functions VALUES ('hello', ?1, 1, 1)", [&id])
        .expect("a function");
}

#[test]
fn a_newer_catalog_is_refused_and_left_alone() {
    let lab = Lab::new();
    lab.catalog.connection().pragma_update(None, "user_version", 99).expect("from the future");
    let Lab { directory, catalog } = lab;
    drop(catalog);
    let error = SqliteCatalog::open(directory.path()).expect_err("too new");
    assert!(
        matches!(error, CatalogError::TooNew { found: 99, known } if known == MIGRATIONS.len()),
        "{error:?}"
    );
}

#[test]
fn a_migration_that_does_not_finish_leaves_the_version_before_it() {
    let mut connection = Connection::open_in_memory().expect("a database");
    let breaks =
        "CREATE TABLE half (x); INSERT INTO half VALUES (1); INSERT INTO nowhere VALUES (1);";
    migrate::run(&mut connection, &["CREATE TABLE first (x);", breaks]).expect_err("broken");
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    assert_eq!(version, Ok(1));
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('first', 'half')";
    assert_eq!(connection.query_row(tables, [], |row| row.get(0)), Ok(1));
    migrate::run(&mut connection, &["never run again", "CREATE TABLE whole (x);"]).expect("mended");
}

#[test]
fn ten_thousand_functions_are_read_together() {
    let lab = Lab::new();
    let fill = lab.catalog.change(|transaction| {
        for number in 0..10_000 {
            let new = deployment(&format!("function-{number:05}"), number);
            deployments::begin(transaction, &new)?;
            deployments::set_artifact(transaction, new.id, &Digest::of(b"x"), 1)?;
            deployments::activate(transaction, new.id)?;
        }
        Ok(())
    });
    fill.expect("filled");
    let functions = lab.catalog.functions().expect("a list");
    assert_eq!(functions.len(), 10_000);
    assert!(functions.is_sorted_by_key(|function| function.name.clone()));
}
