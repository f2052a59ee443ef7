//! A full disk is told as such, and nothing is lost by it.

use std::{fs, io::Write, path::Path};

use catalog::{Blobs, Catalog, CatalogError, NewDeployment, SqliteCatalog};
use model::{FunctionName, Settings};
use rustix::mount::{MountFlags, UnmountFlags};
use uuid::Uuid;

/// A small disk of its own; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// None, and a line that says so, without the right to mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let options = Some(c"size=2m,mode=700");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        match rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, options) {
            Ok(()) => Some(Self(directory)),
            Err(error) => {
                println!("skipped: a small disk cannot be mounted here: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.path().join("filler")).expect("a file");
        for size in [65_536, 4096, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("filler")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn deployment(number: u64) -> NewDeployment {
    NewDeployment {
        id: Uuid::now_v7(),
        function: name(),
        runtime: "node-22".into(),
        entrypoint: "x".repeat(2000),
        settings: Settings::default(),
        created_at: number,
    }
}

fn name() -> FunctionName {
    "hello".parse().expect("a name")
}

#[test]
fn a_full_disk_takes_no_deployments_and_loses_none() {
    let Some(disk) = Disk::mount() else { return };
    let catalog = SqliteCatalog::open(disk.path()).expect("a catalog");
    let first = deployment(0);
    catalog.begin(&first).expect("begun");
    let artifact = catalog::Digest::of(b"x");
    catalog.set_artifact(first.id, &artifact, 1).expect("an artifact");
    let function = catalog.activate(first.id).expect("active");

    disk.fill();
    let mut taken = Vec::new();
    let error = (1..1000).find_map(|number| {
        let new = deployment(number);
        let outcome = catalog.begin(&new);
        taken.extend(outcome.is_ok().then_some(new.id));
        outcome.err()
    });
    assert!(error.as_ref().is_some_and(CatalogError::is_full), "{error:?}");
    assert_eq!(catalog.functions().expect("a list"), std::slice::from_ref(&function));

    disk.empty();
    let last = deployment(1000);
    catalog.begin(&last).expect("there is room again");
    drop(catalog);
    let catalog = SqliteCatalog::open(disk.path()).expect("a catalog");
    assert_eq!(catalog.functions().expect("a list"), [function]);
    let kept = catalog.deployments(&name(), 2000).expect("deployments");
    assert_eq!(kept.len(), taken.len() + 2);
    assert_eq!(kept[0].id, last.id);
}

#[test]
fn a_full_disk_takes_no_blobs_and_keeps_no_part_of_one() {
    let Some(disk) = Disk::mount() else { return };
    let blobs = Blobs::open(&disk.path().join("blobs")).expect("a store");
    let (kept, _) = blobs.put(&b"kept"[..]).expect("stored");
    let error = blobs.put(&vec![1; 4 << 20][..]).expect_err("too large");
    assert!(error.is_full(), "{error:?}");
    assert_eq!(blobs.list().expect("a list"), [kept]);
    blobs.put(&vec![1; 1 << 20][..]).expect("what did not fit takes no room");
}
