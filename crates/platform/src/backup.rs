//! A copy of all that exists, in one file, and back.
//!
//! ```text
//! hearth-backup.json   what is in the file: names, sizes, digests
//! token
//! catalog.db           as it was at one moment
//! blobs/abcd…          the artifacts that it names
//! ```
//!
//! It is a tar, compressed with zstd. It holds everything of the functions but their logs: sources,
//! values of variables, and the daemon's token, so it is as secret as the data directory.
//!
//! A backup is restored in two steps. First all of it is unpacked beside what is there, and checked;
//! until then nothing else is changed. Then what is there moves to the trash, and the new to its
//! place. Whatever interrupts the second step, whoever uses the directory next finishes it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use catalog::{Blobs, Catalog, CatalogError, Digest, SqliteCatalog};
use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use crate::{
    reserve::Reserve,
    store::{NOTE, Store, StoreError},
    trash::Trash,
};

/// The version of the format, which is that of the first file.
const FORMAT: u32 = 1;
const MANIFEST: &str = "hearth-backup.json";
const TOKEN: &str = "token";
const CATALOG: &str = "catalog.db";
const BLOBS: &str = "blobs";
/// Where a backup is unpacked to, in the data directory.
const STAGE: &str = "restoring";
/// In the stage: all of it is there, and has been checked.
const COMPLETE: &str = "complete";
/// What a restored backup replaces without having it itself.
const REPLACED: [&str; 6] =
    ["catalog.db-wal", "catalog.db-shm", "catalog.db-journal", "artifacts", "logs", NOTE];
/// What a backup has. The catalog comes last: without it nothing is served.
const RESTORED: [&str; 3] = [BLOBS, TOKEN, CATALOG];

/// The most bytes of the list of what is in a backup: a hundred thousand artifacts.
const MOST_MANIFEST: u64 = 16 << 20;
const MOST_TOKEN: u64 = 4 << 10;
const MOST_CATALOG: u64 = 4 << 30;
/// A zstd stream may ask for this much memory, as a power of two: 32 MiB. Ours ask for 2.
const ZSTD_WINDOW: u32 = 25;

/// What is in a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// Functions.
    pub functions: usize,
    /// Artifacts.
    pub artifacts: usize,
    /// Bytes of them, packed.
    pub bytes: u64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The catalog cannot be copied.
    #[error("could not copy the catalog")]
    Catalog(#[from] CatalogError),
    /// An artifact cannot be read.
    #[error("could not read the artifacts: {0}")]
    Artifacts(String),
    /// A file of the data directory cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The backup itself cannot be written.
    #[error("could not write the backup")]
    Write(#[source] io::Error),
}

/// Why a backup was not restored. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory has functions, or had some.
    #[error("{} has data already: {}", directory.display(), found.join(", "))]
    NotEmpty {
        /// The data directory.
        directory: PathBuf,
        /// What is there.
        found: Vec<&'static str>,
    },
    /// The file is no backup.
    #[error("this is no backup of Hearth")]
    Foreign,
    /// A later version of Hearth made it.
    #[error("the backup has the format {found}, and this program knows {FORMAT}; use a newer one")]
    TooNew {
        /// Its format.
        found: u32,
    },
    /// The file is cut off, or something in it has changed.
    #[error("the backup is damaged or cut off: {0}")]
    Damaged(String),
    /// The data directory does not do what is asked of it.
    #[error("could not {step} {}", path.display())]
    Files {
        /// What was being done.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The version of Hearth that made it.
    version: String,
    /// When, in milliseconds since 1970.
    created_at: u64,
    functions: usize,
    catalog: Content,
    token: Option<Content>,
    blobs: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    sha256: String,
    bytes: u64,
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        Self { sha256: Digest::of(bytes).to_string(), bytes: bytes.len() as u64 }
    }
}

/// Makes a backup of a data directory that no daemon uses.
pub fn back_up(data: &Path, out: impl Write) -> Result<BackupSummary, BackupError> {
    let failed = |error: StoreError| BackupError::Artifacts(model::describe(&error));
    let store = Store::open(data).map_err(failed)?;
    let stores = store.stores().map_err(failed)?;
    let catalog = SqliteCatalog::open_with(data, stores)?;
    write(&store, &catalog, out)
}

/// Writes a backup. Deployments and removals go on meanwhile: it has what existed at the moment when
/// the catalog was copied.
pub(crate) fn write(
    store: &Store,
    catalog: &dyn Catalog,
    out: impl Write,
) -> Result<BackupSummary, BackupError> {
    let failed = |error: StoreError| BackupError::Artifacts(model::describe(&error));
    let copy = store.scratch();
    // Removed with the scratch directory: only the copy's artifacts are kept until they are read.
    let pins = store.pin_all(|| {
        catalog.copy_to(copy.path())?;
        catalog.artifacts_in_use()
    })?;
    let functions = catalog.functions()?.len();
    let read = |path: &Path| {
        fs::read(path).map_err(|source| BackupError::Read { path: path.into(), source })
    };
    let copied = read(copy.path())?;
    let token_path = store.root().join(TOKEN);
    let token = match fs::read(&token_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(BackupError::Read { path: token_path, source }),
        Ok(token) => Some(token),
    };
    let mut blobs = BTreeMap::new();
    for pin in &pins {
        let file = store.blobs().open_blob(pin.artifact());
        let size = file.map_err(StoreError::from).map_err(failed)?.metadata();
        let size = size.map_err(|source| BackupError::Read { path: BLOBS.into(), source })?;
        blobs.insert(pin.artifact().to_string(), size.len());
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        created_at: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        functions,
        catalog: Content::of(&copied),
        token: token.as_deref().map(Content::of),
        blobs,
    };
    let summary = BackupSummary {
        functions,
        artifacts: manifest.blobs.len(),
        bytes: manifest.blobs.values().sum(),
    };
    // What cannot be written is the backup; what cannot be read was opened before.
    let wrong = BackupError::Write;
    // Artifacts are compressed already.
    let mut encoder = zstd::Encoder::new(out, 1).map_err(wrong)?;
    encoder.include_checksum(true).map_err(wrong)?;
    let mut tar = Builder::new(encoder);
    let json = serde_json::to_vec_pretty(&manifest).expect("plain data is JSON");
    add(&mut tar, MANIFEST, json.len() as u64, &json[..]).map_err(wrong)?;
    if let Some(token) = token {
        add(&mut tar, TOKEN, token.len() as u64, &token[..]).map_err(wrong)?;
    }
    add(&mut tar, CATALOG, copied.len() as u64, &copied[..]).map_err(wrong)?;
    for pin in &pins {
        let name = pin.artifact().to_string();
        let file = store.blobs().open_blob(pin.artifact()).map_err(StoreError::from);
        let file = file.map_err(failed)?;
        add(&mut tar, &format!("{BLOBS}/{name}"), manifest.blobs[&name], file).map_err(wrong)?;
    }
    let encoder = tar.into_inner().map_err(wrong)?;
    encoder.finish().and_then(|mut out| out.flush()).map_err(wrong)?;
    Ok(summary)
}

fn add(
    tar: &mut Builder<impl Write>,
    name: &str,
    bytes: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(bytes);
    tar.append_data(&mut header, name, content.take(bytes))
}

/// Puts a backup in the place of what is in a data directory that nobody uses.
///
/// Without `replaces`, only if there is no data yet. Otherwise what is there moves to the trash. A
/// backup that is damaged, cut off or of another program is refused, and nothing is changed.
pub fn restore(
    data: &Path,
    from: impl Read,
    replaces: bool,
) -> Result<BackupSummary, RestoreError> {
    finish_restore(data)?;
    let found = found(data);
    if !replaces && !found.is_empty() {
        return Err(RestoreError::NotEmpty { directory: data.into(), found });
    }
    let stage = data.join(STAGE);
    remove_tree(&stage)?;
    let unpacked = Stage::make(&stage).and_then(|stage| stage.unpack(from));
    match unpacked {
        Ok(summary) => {
            finish_restore(data)?;
            Ok(summary)
        }
        Err(error) => {
            // The next attempt removes what this one cannot.
            let _ = fs::remove_dir_all(&stage);
            Err(error)
        }
    }
}

/// Finishes what a restore that was interrupted has begun to put in place, and removes what one has
/// not got that far with. Whether there was anything to finish.
fn finish_restore(data: &Path) -> Result<bool, RestoreError> {
    let stage = data.join(STAGE);
    if !stage.join(COMPLETE).exists() {
        remove_tree(&stage)?;
        return Ok(false);
    }
    let trash = Trash::of(data);
    let put_away = |name: &str| {
        let path = data.join(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let moved = trash.put(&path, "replaced").map(drop);
        moved.map_err(|source| RestoreError::Files { step: "move to the trash", path, source })
    };
    REPLACED.into_iter().try_for_each(put_away)?;
    for name in RESTORED {
        let (from, to) = (stage.join(name), data.join(name));
        // It is in its place already.
        if !from.exists() {
            continue;
        }
        put_away(name)?;
        let moved = fs::rename(&from, &to).and_then(|()| sync(data));
        moved.map_err(|source| RestoreError::Files { step: "make", path: to, source })?;
    }
    remove_tree(&stage)?;
    Ok(true)
}

/// What whoever is about to use a data directory does first: finishes a restore, and on a disk that
/// is full gives up what was kept for that. Whether there was a restore to finish.
pub fn prepare(data: &Path) -> Result<bool, RestoreError> {
    let was_restored = finish_restore(data)?;
    let reserve = Reserve::of(data);
    if reserve.is_out() && !Trash::of(data).empty() {
        reserve.give_up();
    }
    Ok(was_restored)
}

/// What of a daemon's data is in a directory.
fn found(data: &Path) -> Vec<&'static str> {
    let is_there = |name: &&str| match fs::read_dir(data.join(name)) {
        // A daemon that never had a function makes directories without anything in them.
        Ok(mut entries) => {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "unfinished"))
        }
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    [CATALOG, BLOBS, "artifacts", "logs"].into_iter().filter(is_there).collect()
}

fn remove_tree(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RestoreError::Files { step: "remove", path: path.into(), source: error })
        }
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A backup that is being unpacked.
struct Stage {
    path: PathBuf,
    blobs: Blobs,
}

fn damaged(why: impl ToString) -> RestoreError {
    RestoreError::Damaged(why.to_string())
}

impl Stage {
    fn make(path: &Path) -> Result<Self, RestoreError> {
        let failed = |source| RestoreError::Files { step: "make", path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let blobs = Blobs::open(&path.join(BLOBS));
        let blobs = blobs.map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self { path: path.into(), blobs })
    }

    fn unpack(self, from: impl Read) -> Result<BackupSummary, RestoreError> {
        let mut decoder = zstd::Decoder::new(from).map_err(|_| RestoreError::Foreign)?;
        decoder.window_log_max(ZSTD_WINDOW).map_err(damaged)?;
        let mut archive = Archive::new(decoder);
        let mut entries = archive.entries().map_err(damaged)?;
        let Some(Ok(mut first)) = entries.next() else { return Err(RestoreError::Foreign) };
        if first.path().ok().as_deref() != Some(Path::new(MANIFEST)) {
            return Err(RestoreError::Foreign);
        }
        let manifest = read_manifest(&mut first)?;
        let (mut has_token, mut has_catalog) = (manifest.token.is_none(), false);
        let mut missing = manifest.blobs.clone();
        for entry in entries {
            let mut entry = entry.map_err(damaged)?;
            let name = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
            match (name.as_str(), name.strip_prefix("blobs/")) {
                (TOKEN, _) if !has_token => {
                    let expected = manifest.token.as_ref().expect("asked for");
                    self.file(TOKEN, expected, MOST_TOKEN, &mut entry)?;
                    has_token = true;
                }
                (CATALOG, _) if !has_catalog => {
                    self.file(CATALOG, &manifest.catalog, MOST_CATALOG, &mut entry)?;
                    has_catalog = true;
                }
                (_, Some(blob)) => {
                    let bytes = missing.remove(blob).ok_or_else(|| damaged(unexpected(&name)))?;
                    self.blob(blob, bytes, &mut entry)?;
                }
                _ => return Err(damaged(unexpected(&name))),
            }
        }
        // The checksum comes last.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
        if !has_token || !has_catalog || !missing.is_empty() {
            return Err(damaged("not all that it lists is in it"));
        }
        let functions = self.check_catalog(&manifest)?;
        self.complete()?;
        Ok(BackupSummary {
            functions,
            artifacts: manifest.blobs.len(),
            bytes: manifest.blobs.values().sum(),
        })
    }

    fn file(
        &self,
        name: &str,
        expected: &Content,
        most: u64,
        from: &mut impl Read,
    ) -> Result<(), RestoreError> {
        let mut content = Vec::new();
        from.take(most.min(expected.bytes) + 1).read_to_end(&mut content).map_err(damaged)?;
        let found = Content::of(&content);
        if (found.bytes, &found.sha256) != (expected.bytes, &expected.sha256) {
            return Err(damaged(format!("{name} is not what was put in")));
        }
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| {
            file.write_all(&content)?;
            file.sync_all()
        });
        written.map_err(|source| RestoreError::Files { step: "write", path, source })
    }

    fn blob(&self, name: &str, bytes: u64, from: &mut impl Read) -> Result<(), RestoreError> {
        let (digest, size) =
            self.blobs.put(from.take(bytes.saturating_add(1))).map_err(|error| match error {
                catalog::BlobError::Source(error) => damaged(error),
                error => RestoreError::Files {
                    step: "write",
                    path: self.path.join(BLOBS),
                    source: io::Error::other(error),
                },
            })?;
        if digest.to_string() != name || size != bytes {
            return Err(damaged(format!("the artifact {name} is not what was put in")));
        }
        Ok(())
    }

    /// The catalog must read, and name nothing that is not there.
    fn check_catalog(&self, manifest: &Manifest) -> Result<usize, RestoreError> {
        let wrong = |error: CatalogError| damaged(model::describe(&error));
        let catalog = SqliteCatalog::open(&self.path).map_err(wrong)?;
        catalog.check_copy().map_err(wrong)?;
        for artifact in catalog.artifacts_in_use().map_err(wrong)? {
            if !manifest.blobs.contains_key(&artifact.to_string()) {
                return Err(damaged(format!("the artifact {artifact} is missing")));
            }
        }
        Ok(catalog.functions().map_err(wrong)?.len())
    }

    /// From here on the restore is finished, whatever happens.
    fn complete(&self) -> Result<(), RestoreError> {
        let path = self.path.join(COMPLETE);
        let made = File::create(&path).and_then(|file| file.sync_all());
        let made = made.and_then(|()| sync(&self.path));
        made.map_err(|source| RestoreError::Files { step: "write", path, source })
    }
}

fn read_manifest(from: &mut impl Read) -> Result<Manifest, RestoreError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let mut json = Vec::new();
    from.take(MOST_MANIFEST).read_to_end(&mut json).map_err(damaged)?;
    let Format { format } = serde_json::from_slice(&json).map_err(damaged)?;
    if format != FORMAT {
        return Err(RestoreError::TooNew { found: format });
    }
    serde_json::from_slice(&json).map_err(damaged)
}

fn unexpected(name: &str) -> String {
    format!("`{}` is not expected there", name.escape_debug())
}

#[cfg(test)]
mod tests;
