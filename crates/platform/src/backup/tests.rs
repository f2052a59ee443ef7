use catalog::NewDeployment;
use model::Settings;
use uuid::Uuid;

use super::*;

/// A data directory that goes with its test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("hearth-backup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("made");
        Self(path)
    }

    fn catalog(&self) -> SqliteCatalog {
        SqliteCatalog::open(&self.0).expect("a catalog")
    }

    /// A function with an artifact of its own.
    fn deploy(&self, name: &str) {
        let (artifact, bytes) = Blobs::open(&self.0.join(BLOBS))
            .and_then(|blobs| blobs.put(name.repeat(100_000).as_bytes()))
            .expect("stored");
        let new = NewDeployment {
            id: Uuid::now_v7(),
            function: name.parse().expect("a name"),
            runtime: "node-20".into(),
            entrypoint: "index.js".into(),
            settings: Settings::default(),
            created_at: 1,
        };
        let catalog = self.catalog();
        catalog.begin(&new).expect("begun");
        catalog.set_artifact(new.id, &artifact, bytes).expect("an artifact");
        catalog.activate(new.id).expect("active");
    }

    fn names(&self) -> Vec<String> {
        let functions = self.catalog().functions().expect("listed");
        let blobs = Blobs::open(&self.0.join(BLOBS)).expect("opened");
        for function in &functions {
            assert!(blobs.contains(&function.active.artifact.expect("it has one")));
        }
        functions.into_iter().map(|function| function.name.to_string()).collect()
    }

    /// Everything below it, with its size.
    fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        let mut left = vec![self.0.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).expect("read").flatten() {
                let data = entry.metadata().expect("there");
                found.push((entry.path(), if data.is_dir() { 0 } else { data.len() }));
                left.extend(data.is_dir().then(|| entry.path()));
            }
        }
        found.sort();
        found
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn made(name: &str) -> (Place, Vec<u8>) {
    let place = Place::new(name);
    place.deploy("first");
    place.deploy("second");
    fs::write(place.0.join(TOKEN), "0123456789abcdef\n").expect("written");
    let mut backup = Vec::new();
    let summary = back_up(&place.0, &mut backup).expect("made");
    assert_eq!((summary.functions, summary.artifacts), (2, 2));
    (place, backup)
}

#[test]
fn what_is_restored_is_what_was_backed_up() {
    let (place, backup) = made("whole");
    place.deploy("later");
    let other = Place::new("whole-other");
    let summary = restore(&other.0, &backup[..], false).expect("restored");
    assert_eq!(summary.functions, 2);
    assert_eq!(other.names(), ["first", "second"]);
    assert_eq!(fs::read(other.0.join(TOKEN)).expect("there"), b"0123456789abcdef\n");
    assert!(!other.0.join(STAGE).exists());

    let refused = restore(&place.0, &backup[..], false).expect_err("not empty");
    assert!(matches!(refused, RestoreError::NotEmpty { .. }), "{refused}");
    assert_eq!(place.names(), ["first", "later", "second"]);
    restore(&place.0, &backup[..], true).expect("asked to");
    assert_eq!(place.names(), ["first", "second"]);
    back_up(&place.0, io::sink()).expect("its stores take it for their own");
    let trash = fs::read_dir(place.0.join("trash")).expect("there").flatten().next();
    let replaced = trash.expect("today").path().join("replaced");
    assert!(replaced.join(CATALOG).is_file() && replaced.join(BLOBS).is_dir());
}

#[test]
fn a_backup_that_is_cut_off_or_changed_is_refused_and_nothing_is_changed() {
    let (place, backup) = made("damaged");
    let before = place.listing();
    let step = backup.len() / 40 + 1;
    for length in (0..backup.len()).step_by(step).chain([backup.len() - 1]) {
        let error = restore(&place.0, &backup[..length], true).expect_err("cut off");
        let is_told = matches!(error, RestoreError::Damaged(_) | RestoreError::Foreign);
        assert!(is_told, "{length}: {error}");
        assert_eq!(place.listing(), before, "{length}");
    }
    for position in (0..backup.len()).step_by(step) {
        let mut changed = backup.clone();
        changed[position] ^= 0x40;
        restore(&place.0, &changed[..], true).expect_err("changed");
        assert_eq!(place.listing(), before, "{position}");
    }
    let error = restore(&place.0, &b"something else"[..], true).expect_err("no backup");
    assert!(matches!(error, RestoreError::Foreign), "{error}");
}

#[test]
fn a_restore_that_is_interrupted_is_finished_or_undone() {
    let (_, backup) = made("interrupted");
    // Killed while it unpacks: all is as it was.
    let place = Place::new("interrupted-early");
    place.deploy("mine");
    fs::create_dir_all(place.0.join(STAGE).join(BLOBS)).expect("made");
    fs::write(place.0.join(STAGE).join(CATALOG), "half of it").expect("written");
    assert!(!finish_restore(&place.0).expect("undone"));
    assert_eq!(place.names(), ["mine"]);
    assert!(!place.0.join(STAGE).exists());

    // Killed after each of the moves.
    for moved in 0..=RESTORED.len() {
        let place = Place::new(&format!("interrupted-{moved}"));
        place.deploy("mine");
        Stage::make(&place.0.join(STAGE)).and_then(|stage| stage.unpack(&backup[..])).expect("ok");
        for name in &RESTORED[..moved] {
            let _ = fs::rename(place.0.join(name), place.0.join(format!("{name}.gone")));
            fs::rename(place.0.join(STAGE).join(name), place.0.join(name)).expect("moved");
        }
        assert!(finish_restore(&place.0).expect("finished"), "{moved}");
        assert_eq!(place.names(), ["first", "second"], "{moved}");
        assert!(!finish_restore(&place.0).expect("once"), "{moved}");
    }
}
