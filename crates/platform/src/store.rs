//! Artifacts: packed, by their digest, and unpacked once for all instances of this host.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use archive::{Compression, PackOptions, UnpackLimits};
use catalog::{Blobs, Catalog, Digest, Stores};
use tracing::warn;

use crate::workshop::{Workshop, WorkshopError};
use crate::{reserve::Reserve, trash::Trash};

/// What an artifact may hold: a source with all it depends on.
const ARTIFACT_LIMITS: UnpackLimits =
    UnpackLimits { bytes: 8 << 30, entries: 1_000_000, path_length: 4096 };

/// Where the stores remember their catalog.
pub(crate) const NOTE: &str = "generation";

/// Why something was not stored or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("could not {step} {}", path.display())]
    Files { step: &'static str, path: PathBuf, source: io::Error },
    #[error("could not store the artifact")]
    Blob(#[from] catalog::BlobError),
    #[error("could not pack the artifact")]
    Pack(#[from] archive::PackError),
    #[error("could not unpack the artifact")]
    Unpack(#[from] archive::UnpackError),
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    #[error(transparent)]
    Catalog(#[from] catalog::CatalogError),
    #[error("could not remove the log: {0}")]
    Logs(String),
    #[error("a task ended early: {0}")]
    Task(String),
}

impl StoreError {
    /// Whether the disk is full: the same may succeed once there is room again.
    fn is_full(&self) -> bool {
        match self {
            Self::Files { source, .. } => catalog::is_disk_full(source),
            Self::Blob(error) => error.is_full(),
            Self::Catalog(error) => error.is_full(),
            Self::Pack(_) | Self::Unpack(_) | Self::Workshop(_) | Self::Logs(_) | Self::Task(_) => {
                false
            }
        }
    }
}

/// Everything that is kept as files in the data directory, but logs.
///
/// ```text
/// blobs/ab/abcd…       packed artifacts
/// artifacts/abcd…/     the same, unpacked: what instances mount
/// scratch/…            uploads and builds under way; emptied at the start
/// generation           which catalog the stores belong to
/// trash/…              what the catalog did not know when the daemon started
/// reserve              room for making room
/// ```
pub(crate) struct Store {
    root: PathBuf,
    blobs: Blobs,
    trash: Trash,
    reserve: Reserve,
    next: AtomicU64,
    /// Artifacts that something is made of, whatever the catalog says.
    pins: Pins,
    /// Held for reading while an artifact is stored, so that it is not swept before it is pinned.
    storing: RwLock<()>,
}

type Pins = Arc<Mutex<HashMap<Digest, usize>>>;

/// Keeps an artifact.
pub(crate) struct Pin {
    artifact: Digest,
    pins: Pins,
}

/// A path below `scratch`. Dropping it removes what is there.
pub(crate) struct Scratch(PathBuf);

impl Store {
    /// Opens the store in a data directory that nobody else uses.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        let scratch = root.join("scratch");
        match fs::remove_dir_all(&scratch) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Files { step: "empty", path: scratch, source });
            }
            _ => {}
        }
        for path in [scratch, root.join("artifacts")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| StoreError::Files { step: "make", path, source })?;
        }
        let blobs = Blobs::open(&root.join("blobs"))?;
        Ok(Self {
            root: root.into(),
            blobs,
            trash: Trash::of(root),
            reserve: Reserve::of(root),
            next: AtomicU64::new(0),
            pins: Pins::default(),
            storing: RwLock::new(()),
        })
    }

    /// What the catalog must know of the stores.
    pub(crate) fn stores(&self) -> Result<Stores, StoreError> {
        let is_full = |name: &str| {
            fs::read_dir(self.root.join(name)).is_ok_and(|mut entries| entries.next().is_some())
        };
        let are_full = !self.blobs.list()?.is_empty() || is_full("artifacts") || is_full("logs");
        Ok(Stores { note: self.root.join(NOTE), are_full })
    }

    /// Does something; on a full disk once more, after giving up what need not be kept. It must be
    /// safe to repeat.
    pub(crate) fn with_room<T>(
        &self,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let outcome = match work() {
            Err(error) if error.is_full() && self.make_room() => work(),
            outcome => outcome,
        };
        self.keep_room();
        outcome
    }

    /// Gives up what need not be kept: the trash, or else the reserve. Whether there was anything.
    fn make_room(&self) -> bool {
        let was_trash = self.trash.empty();
        self.reserve.give_up() || was_trash
    }

    /// Empties the trash if the disk is nearly full, before something new comes.
    pub(crate) fn relieve(&self) {
        if self.reserve.is_tight() {
            self.trash.empty();
        }
    }

    fn keep_room(&self) {
        if let Err(error) = self.reserve.fill() {
            warn!(%error, "could not keep room on the disk; removing functions may fail once it is full");
        }
    }

    /// Moves artifacts that the catalog has never heard of to the trash, and removes what has been
    /// there for long. For a daemon's start: whatever is unknown then, was not made since.
    pub(crate) fn set_aside(&self, catalog: &dyn Catalog) -> Result<(), StoreError> {
        self.trash.expire(SystemTime::now());
        let known: HashSet<_> = catalog.artifacts()?.into_iter().collect();
        let moved = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StoreError::Files { step: "set aside", path, source }
        };
        let mut aside = 0;
        for digest in self.blobs.list()?.iter().filter(|digest| !known.contains(digest)) {
            let place = self.trash.place("blobs").map_err(moved(&self.root))?;
            aside += usize::from(self.blobs.move_away(digest, &place.join(digest.to_string()))?);
        }
        let places = self.root.join("artifacts");
        for entry in fs::read_dir(&places).map_err(moved(&places))? {
            let path = entry.map_err(moved(&places))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.parse().is_ok_and(|digest| known.contains(&digest)) {
                self.trash.put(&path, "artifacts").map_err(moved(&path))?;
                aside += 1;
            }
        }
        if aside > 0 {
            let trash = self.root.join("trash");
            warn!(
                artifacts = aside, trash = %trash.display(),
                "the catalog does not know these: they stay in the trash for seven days"
            );
        }
        Ok(())
    }

    /// A new path for something that is not finished. Nothing is there yet.
    pub(crate) fn scratch(&self) -> Scratch {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Scratch(self.root.join("scratch").join(number.to_string()))
    }

    /// Where an artifact is for instances.
    pub(crate) fn tree(&self, artifact: &Digest) -> PathBuf {
        self.root.join("artifacts").join(artifact.to_string())
    }

    /// Keeps an artifact until the pin is dropped.
    pub(crate) fn pin(&self, artifact: &Digest) -> Pin {
        *self.lock().entry(*artifact).or_default() += 1;
        Pin { artifact: *artifact, pins: self.pins.clone() }
    }

    /// Keeps all artifacts that `list` names, until the pins are dropped. Nothing is removed between
    /// its answer and that.
    pub(crate) fn pin_all<E>(
        &self,
        list: impl FnOnce() -> Result<Vec<Digest>, E>,
    ) -> Result<Vec<Pin>, E> {
        let _nobody_sweeps = self.storing.read().expect("nothing panics while it stores");
        Ok(list()?.iter().map(|artifact| self.pin(artifact)).collect())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Packs a built tree and moves it to its place. It stays there as long as the pin does.
    pub(crate) fn keep(
        &self,
        built: &Scratch,
        workshop: &dyn Workshop,
    ) -> Result<(Pin, u64), StoreError> {
        let _storing = self.storing.read().expect("nothing panics while it stores");
        let (reader, writer) = io::pipe().map_err(|source| StoreError::Files {
            step: "pack",
            path: built.0.clone(),
            source,
        })?;
        let stored = std::thread::scope(|scope| {
            let options = PackOptions { compression: Compression::Zstd, everything: true };
            let packing = scope.spawn(move || archive::pack(&built.0, writer, &options));
            let stored = self.blobs.put(reader);
            packing.join().expect("packing does not panic")?;
            Ok::<_, StoreError>(stored?)
        })?;
        let (artifact, bytes) = stored;
        let pin = self.pin(&artifact);
        self.place(built, &artifact, workshop)?;
        Ok((pin, bytes))
    }

    /// Unpacks an artifact, if that has not been done.
    pub(crate) fn restore(
        &self,
        artifact: &Digest,
        workshop: &dyn Workshop,
    ) -> Result<PathBuf, StoreError> {
        let tree = self.tree(artifact);
        if !tree.is_dir() {
            let scratch = self.scratch();
            let packed = self.blobs.open_blob(artifact)?;
            let failed =
                |source| StoreError::Files { step: "make", path: scratch.0.clone(), source };
            fs::create_dir(&scratch.0).map_err(failed)?;
            archive::unpack(packed, &scratch.0, &ARTIFACT_LIMITS)?;
            self.place(&scratch, artifact, workshop)?;
        }
        Ok(tree)
    }

    /// Removes unpacked artifacts that belong to somebody else than they should. Whoever owned them
    /// may have changed them, so they are unpacked again when they are needed.
    pub(crate) fn discard_foreign(&self, workshop: &dyn Workshop) -> Result<(), StoreError> {
        let places = self.root.join("artifacts");
        let failed = |source| StoreError::Files { step: "look into", path: places.clone(), source };
        for entry in fs::read_dir(&places).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if workshop.is_handed_over(&path).map_err(failed)? {
                continue;
            }
            // Under its name a tree is whole: it is renamed before it is taken apart.
            let scratch = self.scratch();
            fs::rename(&path, &scratch.0).map_err(|source| StoreError::Files {
                step: "remove",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// A tree is at its place either as a whole or not at all.
    fn place(
        &self,
        tree: &Scratch,
        artifact: &Digest,
        workshop: &dyn Workshop,
    ) -> Result<(), StoreError> {
        let place = self.tree(artifact);
        if place.is_dir() {
            return Ok(());
        }
        workshop.hand_over(&tree.0)?;
        match fs::rename(&tree.0, &place) {
            // Somebody else who built the same was faster.
            Err(_) if place.is_dir() => Ok(()),
            moved => {
                moved.map_err(|source| StoreError::Files { step: "make", path: place, source })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.pins.lock().expect("no panic while the lock is held")
    }

    /// Removes artifacts that nothing refers to.
    pub(crate) fn sweep(&self, catalog: &Arc<dyn Catalog>) -> Result<(), StoreError> {
        let _nobody_stores = self.storing.write().expect("nothing panics while it stores");
        let mut in_use = catalog.artifacts_in_use()?;
        in_use.extend(self.lock().keys().copied());
        self.blobs.sweep(&in_use, Duration::ZERO)?;
        let places = self.root.join("artifacts");
        let failed = |source| StoreError::Files { step: "look into", path: places.clone(), source };
        for entry in fs::read_dir(&places).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_used = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Digest>().ok())
                .is_some_and(|digest| in_use.contains(&digest));
            if !is_used {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(|source| StoreError::Files {
                    step: "remove",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

impl Pin {
    pub(crate) fn artifact(&self) -> &Digest {
        &self.artifact
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().expect("no panic while the lock is held");
        if let Some(count) = pins.get_mut(&self.artifact) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.artifact);
            }
        }
    }
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = match fs::symlink_metadata(&self.0) {
            Ok(data) if data.is_dir() => fs::remove_dir_all(&self.0),
            Ok(_) => fs::remove_file(&self.0),
            Err(_) => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.0.display(), %error, "could not remove what is not needed");
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use executor::Template;
    use model::Network;

    use super::*;
    use crate::workshop::{NotOffered, Plan};

    struct NoWorkshop;

    #[async_trait]
    impl Workshop for NoWorkshop {
        fn offers(&self, _: Option<&str>, _: Option<Network>) -> Result<(), NotOffered> {
            unreachable!("nothing is deployed")
        }

        fn examine(
            &self,
            _: &Path,
            _: Option<&str>,
            _: Option<&str>,
        ) -> Result<Plan, WorkshopError> {
            unreachable!("nothing is deployed")
        }

        fn has_build(&self, _: &Plan, _: &Path) -> bool {
            unreachable!("nothing is deployed")
        }

        async fn build(
            &self,
            _: &Plan,
            _: &Path,
            _: &(dyn Fn(String) + Send + Sync),
        ) -> Result<(), WorkshopError> {
            unreachable!("nothing is deployed")
        }

        fn hand_over(&self, _: &Path) -> Result<(), WorkshopError> {
            Ok(())
        }

        fn is_handed_over(&self, tree: &Path) -> io::Result<bool> {
            Ok(!tree.join("foreign").exists())
        }

        fn template(&self, _: &str, _: Option<Network>) -> Result<Template, WorkshopError> {
            unreachable!("nothing is served")
        }
    }

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hearth-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("made");
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn built(store: &Store, text: &str) -> Scratch {
        let scratch = store.scratch();
        fs::create_dir(scratch.path()).expect("made");
        fs::write(scratch.path().join("index.js"), text).expect("written");
        scratch
    }

    #[test]
    fn the_same_code_built_twice_at_once_is_one_artifact() {
        let place = Place::new("store-twice");
        let store = Store::open(&place.0).expect("open");
        for round in 0..20 {
            let text = round.to_string();
            let trees = [built(&store, &text), built(&store, &text)];
            let pins = std::thread::scope(|scope| {
                let kept = trees.map(|tree| {
                    let store = &store;
                    scope.spawn(move || store.keep(&tree, &NoWorkshop).expect("kept").0)
                });
                kept.map(|kept| kept.join().expect("no panic"))
            });
            assert_eq!(pins[0].artifact(), pins[1].artifact());
            let file = store.tree(pins[0].artifact()).join("index.js");
            assert_eq!(fs::read_to_string(file).expect("there"), text);
        }
    }

    #[test]
    fn what_somebody_else_owned_is_unpacked_again() {
        let place = Place::new("store-foreign");
        let store = Store::open(&place.0).expect("open");
        let [foreign, own] = ["foreign", "own"].map(|text| {
            let (pin, _) = store.keep(&built(&store, text), &NoWorkshop).expect("kept");
            pin
        });
        let changed = store.tree(foreign.artifact());
        fs::write(changed.join("index.js"), "replaced").expect("written");
        fs::write(changed.join("foreign"), "").expect("written");
        store.discard_foreign(&NoWorkshop).expect("discarded");
        assert!(!changed.exists());
        assert!(store.tree(own.artifact()).join("index.js").exists());
        let tree = store.restore(foreign.artifact(), &NoWorkshop).expect("unpacked");
        assert_eq!(fs::read_to_string(tree.join("index.js")).expect("there"), "foreign");
        assert!(!tree.join("foreign").exists());
    }

    #[test]
    fn what_is_pinned_stays_and_what_nobody_knows_goes() {
        let place = Place::new("store-sweep");
        let store = Store::open(&place.0).expect("open");
        let catalog = catalog::SqliteCatalog::open(&place.0).expect("open");
        let catalog: Arc<dyn Catalog> = Arc::new(catalog);
        let (pin, bytes) = store.keep(&built(&store, "x"), &NoWorkshop).expect("kept");
        assert!(bytes > 0);
        let tree = store.tree(pin.artifact());
        let digest = *pin.artifact();
        store.sweep(&catalog).expect("swept");
        assert!(tree.is_dir(), "pinned");

        fs::remove_dir_all(&tree).expect("removed");
        let again = store.restore(&digest, &NoWorkshop).expect("unpacked");
        assert_eq!(fs::read_to_string(again.join("index.js")).expect("there"), "x");

        drop(pin);
        store.sweep(&catalog).expect("swept");
        assert!(!tree.exists());
        assert!(store.restore(&digest, &NoWorkshop).is_err(), "the packed one is gone, too");
    }

    #[test]
    fn what_was_under_way_is_gone_at_the_next_start() {
        let place = Place::new("store-scratch");
        let store = Store::open(&place.0).expect("open");
        let path = built(&store, "x").path().to_path_buf();
        assert!(!path.exists(), "dropped, removed");
        std::mem::forget(built(&store, "killed"));
        assert!(fs::read_dir(place.0.join("scratch")).expect("there").next().is_some());
        Store::open(&place.0).expect("open");
        assert!(fs::read_dir(place.0.join("scratch")).expect("there").next().is_none());
    }
}
