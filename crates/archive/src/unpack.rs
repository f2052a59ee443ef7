mod refusal;

use std::{
    cell::Cell,
    collections::HashSet,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

pub use refusal::UnpackError;

use crate::{Summary, directory::Directory, link::stays_inside};

/// What an archive may hold. Whatever goes beyond is refused when it is met, so an archive that
/// says little and unfolds to a lot costs no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes in all files together, uncompressed.
    pub bytes: u64,
    /// Files, directories and links, directories that only occur in paths included.
    pub entries: u64,
    /// Bytes of a path, and of a link's target.
    pub path_length: usize,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes: 1 << 30, entries: 200_000, path_length: 1024 }
    }
}

/// What a header may take up: long names and extended attributes come before an entry.
const HEADER: u64 = 256 << 10;
/// What may follow the end of the archive: tar fills up to a record.
const PADDING: u64 = 1 << 20;
/// A zstd stream may ask for this much memory, as a power of two: 32 MiB. Level 19 asks for 8.
const ZSTD_WINDOW: u32 = 25;

/// The longest name of a file on Linux.
const NAME: usize = 255;
/// How deep directories may be nested: each entry costs a step down for each of them.
const DEPTH: usize = 100;

/// Unpacks a tar, plain or compressed with gzip or zstd, into an empty directory.
///
/// Nothing is ever written outside of `directory`, whatever the archive says. Refused are: paths
/// that are absolute or go up; devices, pipes and sparse files; links that lead outside, alone or
/// together with others; entries that go through a link; entries that occur twice; and what goes
/// beyond the limits. Files get the mode 0644, or 0755 if their owner may execute them; directories
/// 0755. Owners, times and extended attributes are not taken over. A single folder at the top stays.
///
/// After an error the directory holds whatever came before it: remove it.
pub fn unpack(
    reader: impl Read,
    directory: &Path,
    limits: &UnpackLimits,
) -> Result<Summary, UnpackError> {
    let write = |source| UnpackError::Write { path: directory.into(), source };
    let root = Directory::open(directory).map_err(write)?;
    if !root.is_empty().map_err(write)? {
        return Err(UnpackError::NotEmpty);
    }
    let mut reader = BufReader::new(reader);
    match reader.fill_buf().map_err(UnpackError::Malformed)? {
        [] => Err(UnpackError::Empty),
        [0x1f, 0x8b, ..] => Unpacker::run(MultiGzDecoder::new(reader), root, *limits),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(reader).map_err(UnpackError::Malformed)?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(UnpackError::Malformed)?;
            Unpacker::run(decoder, root, *limits)
        }
        _ => Unpacker::run(reader, root, *limits),
    }
}

/// Reads up to an allowance, which is renewed for each header and each content.
struct Metered<'a, R> {
    inner: R,
    allowance: &'a Cell<u64>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header is too large"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.allowance.set(left - read as u64);
        Ok(read)
    }
}

struct Unpacker<'a> {
    root: Directory,
    limits: UnpackLimits,
    /// How many more entries there may be.
    entries_left: u64,
    /// What the reader may still read.
    allowance: &'a Cell<u64>,
    /// Made at the end, so that nothing is written through one.
    links: Vec<(PathBuf, PathBuf)>,
    link_paths: HashSet<PathBuf>,
    /// Where the last entry was: the next one is there, too, more often than not.
    last: Option<(PathBuf, Directory)>,
    summary: Summary,
}

impl Unpacker<'_> {
    fn run(
        reader: impl Read,
        root: Directory,
        limits: UnpackLimits,
    ) -> Result<Summary, UnpackError> {
        let allowance = Cell::new(HEADER);
        let mut archive = Archive::new(Metered { inner: reader, allowance: &allowance });
        let mut unpacker = Unpacker {
            root,
            limits,
            entries_left: limits.entries,
            allowance: &allowance,
            links: Vec::new(),
            link_paths: HashSet::new(),
            last: None,
            summary: Summary::default(),
        };
        for entry in archive.entries().map_err(UnpackError::Malformed)? {
            let mut entry = entry.map_err(UnpackError::Malformed)?;
            unpacker.entry(&mut entry)?;
            allowance.set(HEADER);
        }
        // A checksum may come last.
        allowance.set(PADDING);
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Malformed)?;
        unpacker.make_links()?;
        match unpacker.summary {
            Summary { files: 0, directories: 0, links: 0, .. } => Err(UnpackError::Empty),
            summary => Ok(summary),
        }
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let path = entry.path().map_err(UnpackError::Malformed)?.into_owned();
        self.check(&path, &path)?;
        // What is left of the file's share, and one byte to notice that it was not enough.
        self.allowance.set(self.limits.bytes - self.summary.bytes + 1);
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => self.file(&inside(&path)?, entry)?,
            EntryType::Directory => self.directory(&path)?,
            EntryType::Symlink => self.link(inside(&path)?, target(entry)?)?,
            EntryType::Link => self.hard_link(&inside(&path)?, &target(entry)?)?,
            // `git archive` begins with one: a comment.
            EntryType::XGlobalHeader => {}
            kind => return Err(UnpackError::Kind { path, kind: describe(kind) }),
        }
        // Content of something that has none: read here, where it counts.
        let left_over = io::copy(entry, &mut io::sink());
        self.count_bytes(left_over.map_err(|error| self.content_error(error))?)
    }

    fn file(&mut self, path: &Path, entry: &mut Entry<'_, impl Read>) -> Result<(), UnpackError> {
        self.count_entry()?;
        let write = |source| write_error(path, source);
        let is_executable = entry.header().mode().map_err(UnpackError::Malformed)? & 0o100 != 0;
        let (parent, name) = self.parent(path)?;
        let mut file = parent.create(name, is_executable).map_err(write)?;
        let mut buffer = [0; 32 << 10];
        let mut written = 0;
        loop {
            let read = match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.content_error(error)),
            };
            written += read as u64;
            self.count_bytes(read as u64)?;
            io::Write::write_all(&mut file, &buffer[..read]).map_err(write)?;
        }
        if written < entry.size() {
            return Err(UnpackError::Malformed(io::ErrorKind::UnexpectedEof.into()));
        }
        self.summary.files += 1;
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<(), UnpackError> {
        // `./` is the directory that is unpacked into.
        if path.components().all(|component| component == Component::CurDir) {
            return Ok(());
        }
        let path = inside(path)?;
        // Directories may occur twice, and often do.
        self.enter(&path, &path).map(drop)
    }

    fn link(&mut self, path: PathBuf, target: PathBuf) -> Result<(), UnpackError> {
        self.count_entry()?;
        self.check(&path, &target)?;
        if !stays_inside(path.parent().unwrap_or(Path::new("")), &target) {
            return Err(UnpackError::Link { path, target });
        }
        if !self.link_paths.insert(path.clone()) {
            return Err(UnpackError::Twice { path });
        }
        // It may take the name of a directory on the way there, which nothing may go through now.
        self.last = None;
        self.links.push((path, target));
        self.summary.links += 1;
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        self.count_entry()?;
        let refused = || UnpackError::HardLink { path: path.into(), target: target.into() };
        self.check(path, target)?;
        let original = inside(target).map_err(|_| refused())?;
        let (from, original) = self.existing_parent(&original).ok_or_else(refused)?;
        let (parent, name) = self.parent(path)?;
        parent.hard_link(name, &from, original).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => UnpackError::Twice { path: path.into() },
            _ => refused(),
        })?;
        self.summary.files += 1;
        Ok(())
    }

    fn make_links(&mut self) -> Result<(), UnpackError> {
        for (path, target) in std::mem::take(&mut self.links) {
            let (parent, name) = self.parent(&path)?;
            parent.link(name, &target).map_err(|error| write_error(&path, error))?;
        }
        Ok(())
    }

    /// The directory that an entry is in, made if it is not there yet.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(Directory, &'p OsStr), UnpackError> {
        let (parent, name) = split(path);
        Ok((self.enter(parent, path)?, name))
    }

    fn existing_parent<'p>(&self, path: &'p Path) -> Option<(Directory, &'p OsStr)> {
        let (parent, name) = split(path);
        let start = self.root.reopen().ok()?;
        let directory = parent.iter().try_fold(start, |directory, name| directory.enter(name));
        Some((directory.ok()?, name))
    }

    /// Goes down, making what is not there; `path` is the entry this is done for.
    fn enter(&mut self, directory: &Path, path: &Path) -> Result<Directory, UnpackError> {
        let write = |source| UnpackError::Write { path: path.into(), source };
        if let Some((_, last)) = self.last.as_ref().filter(|(known, _)| known == directory) {
            return last.reopen().map_err(write);
        }
        let mut current = self.root.reopen().map_err(write)?;
        let mut walked = PathBuf::new();
        for name in directory {
            walked.push(name);
            if self.link_paths.contains(&walked) {
                return Err(UnpackError::NotInDirectory { path: path.into() });
            }
            let next = match current.enter(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.count_entry()?;
                    self.summary.directories += 1;
                    current.make(name)
                }
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    return Err(UnpackError::NotInDirectory { path: path.into() });
                }
                found => found,
            };
            current = next.map_err(write)?;
        }
        self.last = Some((walked, current.reopen().map_err(write)?));
        Ok(current)
    }

    /// Before the thing itself is made.
    fn count_entry(&mut self) -> Result<(), UnpackError> {
        let limit = self.limits.entries;
        self.entries_left =
            self.entries_left.checked_sub(1).ok_or(UnpackError::TooMany { limit })?;
        Ok(())
    }

    fn count_bytes(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.summary.bytes += bytes;
        let limit = self.limits.bytes;
        if self.summary.bytes > limit { Err(UnpackError::TooLarge { limit }) } else { Ok(()) }
    }

    fn check(&self, path: &Path, text: &Path) -> Result<(), UnpackError> {
        let too_long = |limit| UnpackError::TooLong { path: path.into(), limit };
        if text.as_os_str().len() > self.limits.path_length {
            return Err(too_long(self.limits.path_length));
        }
        if text.iter().any(|name| name.len() > NAME) {
            return Err(too_long(NAME));
        }
        let is_plain =
            text.components().count() <= DEPTH && !text.as_os_str().as_bytes().contains(&0);
        is_plain.then_some(()).ok_or_else(|| UnpackError::Path { path: path.into() })
    }

    /// An allowance that is used up means that the limit was met.
    fn content_error(&self, error: io::Error) -> UnpackError {
        match self.allowance.get() {
            0 => UnpackError::TooLarge { limit: self.limits.bytes },
            _ => UnpackError::Malformed(error),
        }
    }
}

/// The path as names only.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let refused = || UnpackError::Path { path: path.into() };
    let mut names = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(refused());
            }
        }
    }
    if names.as_os_str().is_empty() { Err(refused()) } else { Ok(names) }
}

fn split(path: &Path) -> (&Path, &OsStr) {
    let name = path.file_name().expect("`inside` leaves names only, at least one");
    (path.parent().unwrap_or(Path::new("")), name)
}

fn target(entry: &Entry<'_, impl Read>) -> Result<PathBuf, UnpackError> {
    let target = entry.link_name().map_err(UnpackError::Malformed)?;
    Ok(target.map(PathBuf::from).unwrap_or_default())
}

fn write_error(path: &Path, source: io::Error) -> UnpackError {
    match source.kind() {
        io::ErrorKind::AlreadyExists => UnpackError::Twice { path: path.into() },
        _ => UnpackError::Write { path: path.into(), source },
    }
}

fn describe(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        _ => "something of an unknown kind",
    }
}
