use std::{io, path::PathBuf};

/// Why an archive was not unpacked. Part of it may have been.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is not a tar, or is damaged or incomplete.
    #[error("not a tar, plain or compressed with gzip or zstd, or a damaged one")]
    Malformed(#[source] io::Error),
    /// There is nothing in it.
    #[error("the archive is empty")]
    Empty,
    /// An entry would be outside of the directory, or has a name that no file can have.
    #[error("{path:?}: the path is absolute, goes up, is empty, has a NUL or is deeper than 100")]
    Path {
        /// The entry.
        path: PathBuf,
    },
    /// An entry's path, or its target, is too long.
    #[error("{path:?}: longer than {limit} bytes")]
    TooLong {
        /// The entry.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// An entry is of a kind that a function's source has no use for.
    #[error("{path:?}: {kind}, not a file, a directory or a link")]
    Kind {
        /// The entry.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A link points outside of the directory, or might by way of another one.
    #[error("{path:?}: the link to {target:?} may lead outside of the folder")]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A hard link to something that no earlier entry is.
    #[error("{path:?}: a hard link to {target:?}, which is no earlier file of the archive")]
    HardLink {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// An entry is in a directory that the archive says is a link or a file.
    #[error("{path:?}: inside of something that is not a directory")]
    NotInDirectory {
        /// The entry.
        path: PathBuf,
    },
    /// The same path occurs twice.
    #[error("{path:?}: occurs twice")]
    Twice {
        /// The entry.
        path: PathBuf,
    },
    /// The files together are too large.
    #[error("more than {limit} bytes, uncompressed")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// There are too many entries.
    #[error("more than {limit} files, directories and links")]
    TooMany {
        /// The limit.
        limit: u64,
    },
    /// The directory has something in it.
    #[error("the directory to unpack into is not empty")]
    NotEmpty,
    /// The directory cannot be written; the archive is not to blame.
    #[error("could not write {path:?}")]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
