//! What the stores beside a catalog remember of it.
//!
//! The catalog counts the changes of what must be kept beside it; after each, the number is noted in
//! a file beside them. So the note is never ahead of the catalog that made it: if it is, the
//! catalog is an older copy, such as one without its write-ahead log, and what it does not name may
//! well be needed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, Transaction};

use super::{migrate::IDENTITY_SINCE, unsigned};
use crate::CatalogError;

/// The stores beside a catalog, as far as it must know them.
#[derive(Clone, Debug)]
pub struct Stores {
    /// The file in which the stores remember the catalog. Its directory must exist.
    pub note: PathBuf,
    /// Whether anything is in them.
    pub are_full: bool,
}

/// Which catalog, and how often it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    id: String,
    number: u64,
}

impl Generation {
    /// None if the catalog is of a version that has no identity yet, or no catalog at all.
    fn of(connection: &Connection) -> Result<Option<Self>, CatalogError> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version < IDENTITY_SINCE {
            return Ok(None);
        }
        let sql = "SELECT id, generation FROM identity";
        let found = connection
            .query_row(sql, [], |row| Ok(Self { id: row.get(0)?, number: unsigned(row.get(1)?) }));
        Ok(Some(found?))
    }

    /// None if there is no note, or one that does not read as one.
    fn noted(path: &Path) -> Result<Option<Self>, CatalogError> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(CatalogError::Open)?,
        };
        let (id, number) = text.trim().split_once(' ').unwrap_or_default();
        Ok(number.parse().ok().map(|number| Self { id: id.into(), number }))
    }

    fn note(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file: File =
            options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        writeln!(file, "{} {}", self.id, self.number)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    }
}

impl Stores {
    /// Refuses a catalog file that cannot be the one of these stores. Before it is opened.
    pub(super) fn check_file(&self, catalog: &Path) -> Result<(), CatalogError> {
        let is_missing = match fs::metadata(catalog) {
            Ok(found) => found.len() == 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(CatalogError::Open(error)),
        };
        if is_missing && self.are_full { Err(CatalogError::Missing) } else { Ok(()) }
    }

    /// Refuses a catalog that knows less than its stores. Before it is changed.
    pub(super) fn check(&self, connection: &Connection) -> Result<(), CatalogError> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 && self.are_full {
            return Err(CatalogError::Missing);
        }
        let Some(noted) = Generation::noted(&self.note)?.filter(|_| self.are_full) else {
            return Ok(());
        };
        let note = self.note.clone();
        match Generation::of(connection)? {
            Some(found) if found.id != noted.id => Err(CatalogError::Stranger { note }),
            Some(found) if found.number >= noted.number => Ok(()),
            Some(_) | None => Err(CatalogError::Older { note }),
        }
    }
}

/// Counts a change of what must be kept beside the catalog.
pub(super) fn count(transaction: &Transaction<'_>) -> Result<(), CatalogError> {
    let sql = "UPDATE identity SET generation = generation + 1";
    transaction.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// Notes how often the catalog has changed, after it has.
///
/// A note that cannot be made, as on a full disk, fails nothing: the older one says less, and says
/// nothing wrong.
pub(super) fn note(connection: &Connection, note: &Path) {
    if let Ok(Some(generation)) = Generation::of(connection) {
        let _ = generation.note(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Catalog, Digest, SqliteCatalog,
        sqlite::tests::{deployment, name},
    };

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn path(&self, file: &str) -> PathBuf {
            self.0.path().join(file)
        }

        fn open(&self, are_full: bool) -> Result<SqliteCatalog, CatalogError> {
            SqliteCatalog::open_with(self.0.path(), Stores { note: self.path("note"), are_full })
        }
    }

    fn deploy(catalog: &SqliteCatalog, function: &str) {
        let new = deployment(function, 1);
        catalog.begin(&new).expect("begun");
        catalog.set_artifact(new.id, &Digest::of(b"x"), 1).expect("an artifact");
        catalog.activate(new.id).expect("active");
    }

    #[test]
    fn a_catalog_opens_with_its_own_stores() {
        let lab = Lab::new();
        for round in 0..3 {
            let catalog = lab.open(round > 0).expect("its own");
            deploy(&catalog, "hello");
            assert!(catalog.remove(&name("hello")).expect("removed"));
            deploy(&catalog, "hello");
        }
        // A crash between a change and its note.
        let earlier = fs::read(lab.path("note")).expect("noted");
        deploy(&lab.open(true).expect("its own"), "other");
        fs::write(lab.path("note"), earlier).expect("written");
        lab.open(true).expect("a note that is late says nothing wrong");
        fs::write(lab.path("note"), "nonsense").expect("written");
        lab.open(true).expect("no note, no doubt");
    }

    #[test]
    fn full_stores_without_their_catalog_are_left_alone() {
        let lab = Lab::new();
        assert!(matches!(lab.open(true), Err(CatalogError::Missing)));
        assert!(!lab.path("catalog.db").exists(), "nothing was made");
        fs::write(lab.path("catalog.db"), "").expect("written");
        assert!(matches!(lab.open(true), Err(CatalogError::Missing)));
        drop(lab.open(false).expect("empty stores have nothing to lose"));
    }

    #[test]
    fn a_catalog_that_was_copied_without_its_log_is_refused() {
        let lab = Lab::new();
        let catalog = lab.open(false).expect("new");
        // Nothing of it is in the file itself yet, or only a part.
        let copies = ["none", "one"].map(|copy| {
            fs::copy(lab.path("catalog.db"), lab.path(copy)).expect("copied");
            deploy(&catalog, copy);
            copy
        });
        drop(catalog);
        fs::copy(lab.path("catalog.db"), lab.path("whole")).expect("copied");
        for copy in copies {
            fs::copy(lab.path(copy), lab.path("catalog.db")).expect("copied");
            let error = lab.open(true).expect_err(copy);
            let is_refused = matches!(error, CatalogError::Missing | CatalogError::Older { .. });
            assert!(is_refused, "{copy}: {error}");
        }
        fs::copy(lab.path("whole"), lab.path("catalog.db")).expect("copied");
        let catalog = lab.open(true).expect("the whole one is right");
        assert_eq!(catalog.functions().expect("listed").len(), 2);
    }

    #[test]
    fn another_catalog_is_refused_until_the_note_is_removed() {
        let (lab, other) = (Lab::new(), Lab::new());
        deploy(&lab.open(false).expect("new"), "hello");
        drop(other.open(false).expect("new"));
        fs::copy(other.path("catalog.db"), lab.path("catalog.db")).expect("copied");
        assert!(matches!(lab.open(true), Err(CatalogError::Stranger { .. })));
        fs::remove_file(lab.path("note")).expect("removed");
        lab.open(true).expect("on purpose");
    }
}
