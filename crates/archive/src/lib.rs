//! Source folders as archives, and back.
//!
//! ```text
//! folder ──pack──► tar.gz or tar.zst ──unpack──► folder
//!  of a user       over the network               of the daemon
//! ```
//!
//! [`pack()`] reads what its own user owns, so it is about convenience: equal trees give equal bytes,
//! and what nobody wants to send stays behind. [`unpack()`] reads what a stranger sent, so it is about
//! safety: it never writes outside of its directory, and never more than it was allowed.
//!
//! Both block. Not here: what a source folder must contain, and where archives are kept.

mod directory;
mod ignored;
mod link;
mod pack;
mod unpack;

pub use pack::{Compression, PackError, PackOptions, pack};
pub use unpack::{UnpackError, UnpackLimits, unpack};

/// What was packed or unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files; hard links count, too.
    pub files: u64,
    /// Directories, without the one that was packed or unpacked into.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes in the files.
    pub bytes: u64,
    /// Files and directories that were not packed; a directory counts as one. Nothing is left out
    /// when unpacking.
    pub left_out: u64,
    /// Those of them that are called `.env` or `.env.…`, where variables are kept.
    pub environment_files: u64,
}
