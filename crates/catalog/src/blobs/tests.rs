use super::*;

fn store() -> (tempfile::TempDir, Blobs) {
    let directory = tempfile::tempdir().expect("a directory");
    let blobs = Blobs::open(directory.path()).expect("a store");
    (directory, blobs)
}

fn unfinished(directory: &Path) -> usize {
    fs::read_dir(directory.join(UNFINISHED)).expect("a directory").count()
}

#[test]
fn a_blob_is_found_by_its_digest() {
    let (directory, blobs) = store();
    let content = vec![7; 3 * BUFFER + 1];
    let (digest, size) = blobs.put(content.as_slice()).expect("stored");
    assert_eq!((digest, size), (Digest::of(&content), 3 * 65_536 + 1));

    let name = digest.to_string();
    assert!(directory.path().join(&name[..2]).join(&name).is_file());
    let mut read = Vec::new();
    blobs.open_blob(&digest).expect("there").read_to_end(&mut read).expect("read");
    assert_eq!(read, content);
    assert!(blobs.contains(&digest));
    assert!(!blobs.contains(&Digest::of(b"something else")));
    let missing = blobs.open_blob(&Digest::of(b"something else"));
    assert!(matches!(missing, Err(BlobError::Unknown(_))), "{missing:?}");
}

#[test]
fn storing_the_same_twice_changes_nothing() {
    let (directory, blobs) = store();
    let first = blobs.put(&b"same"[..]).expect("stored");
    assert_eq!(blobs.put(&b"same"[..]).expect("stored"), first);
    assert_eq!(blobs.list().expect("a list"), [first.0]);
    assert_eq!(unfinished(directory.path()), 0);
}

#[test]
fn removing_twice_succeeds() {
    let (_directory, blobs) = store();
    let (digest, _) = blobs.put(&b"x"[..]).expect("stored");
    assert!(blobs.remove(&digest).expect("removed"));
    assert!(!blobs.remove(&digest).expect("gone already"));
    assert_eq!(blobs.list().expect("a list"), []);
}

#[test]
fn nothing_is_left_of_a_source_that_breaks() {
    struct Breaks;
    impl Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the client is gone"))
        }
    }
    let (directory, blobs) = store();
    let error = blobs.put(b"some".chain(Breaks)).expect_err("broken");
    assert!(matches!(error, BlobError::Source(_)), "{error:?}");
    assert!(!error.is_full());
    assert_eq!(unfinished(directory.path()), 0);
    assert_eq!(blobs.list().expect("a list"), []);
}

#[test]
fn what_a_killed_daemon_left_unfinished_is_removed() {
    let (directory, blobs) = store();
    let (digest, _) = blobs.put(&b"finished"[..]).expect("stored");
    // As a kill leaves it: neither renamed nor dropped.
    std::mem::forget(blobs.unfinished().expect("a file"));
    assert_eq!(unfinished(directory.path()), 1);

    let blobs = Blobs::open(directory.path()).expect("a store");
    assert_eq!(unfinished(directory.path()), 0);
    assert_eq!(blobs.list().expect("a list"), [digest]);
}

#[test]
fn a_sweep_removes_what_is_old_and_not_in_use() {
    let (_directory, blobs) = store();
    let hour = Duration::from_secs(3600);
    let mut stored = [&b"used"[..], b"unused", b"stored again"].map(|content| {
        let (digest, _) = blobs.put(content).expect("stored");
        let long_ago = SystemTime::now() - 2 * hour;
        File::open(blobs.path(&digest)).and_then(|file| file.set_modified(long_ago)).expect("aged");
        digest
    });
    blobs.put(&b"stored again"[..]).expect("stored");
    assert_eq!(blobs.sweep(&[stored[0]], hour).expect("swept"), [stored[1]]);

    let mut left = blobs.list().expect("a list");
    left.sort_unstable();
    stored.swap(1, 2);
    stored[..2].sort_unstable();
    assert_eq!(left, stored[..2]);
}

#[test]
fn a_sweep_is_not_held_up_by_a_clock_that_was_set_back() {
    let (_directory, blobs) = store();
    let (digest, _) = blobs.put(&b"old"[..]).expect("stored");
    let file = blobs.open_blob(&digest).expect("there");
    file.set_modified(SystemTime::now() + Duration::from_secs(3600)).expect("set");
    assert_eq!(blobs.sweep(&[], Duration::ZERO).expect("swept"), [digest]);
}

#[test]
fn others_cannot_read_blobs() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, blobs) = store();
    let (digest, _) = blobs.put(&b"secret"[..]).expect("stored");
    let mode = fs::metadata(blobs.path(&digest)).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
