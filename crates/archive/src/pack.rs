use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use flate2::{GzBuilder, write::GzEncoder};
use rustix::fs::{Mode, OFlags};
use tar::{Builder, EntryType, Header};

use crate::{
    Summary,
    ignored::{Ignored, is_environment_file},
    link::stays_inside,
};

/// How a folder is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// How the tar is compressed.
    pub compression: Compression,
    /// Leaves nothing out but what has no content: for what was built, not for what is sent.
    pub everything: bool,
}

/// How a tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `.tar.gz`, which everything reads.
    Gzip,
    /// `.tar.zst`, smaller and several times faster.
    Zstd,
}

/// Why a folder was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Something in it cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// What cannot be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ignore file has a mistake.
    #[error("the ignore file has a mistake")]
    Ignore(#[from] ignore::Error),
    /// Nobody could unpack the link.
    #[error(
        "{} points to {}, which may be outside of the folder: make it relative, without `..` after \
         a name, or leave it out with a line in .hearthignore", path.display(), target.display()
    )]
    Link {
        /// The link, relative to the folder.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A file became shorter while it was packed.
    #[error("{} changed while it was packed; try again", path.display())]
    Changed {
        /// The file, relative to the folder.
        path: PathBuf,
    },
    /// The archive could not be written.
    #[error("could not write the archive")]
    Write(#[from] io::Error),
}

/// Writes a folder's files, directories and symbolic links as a compressed tar.
///
/// Equal trees give equal bytes, whoever owns them and whenever they were made: entries are sorted,
/// owners and times are 0, modes are 0644, or 0755 for directories and what its owner may execute.
///
/// Left out: sockets, pipes and devices; files called `.env` or `.env.…`, which hold secrets;
/// `hearth.toml` at the top; version control, `__pycache__`, `.venv`, `.DS_Store`, and `node_modules` beside a `package.json`, since the build installs them; and what `.hearthignore`
/// at the top of the folder names, or `.gitignore` if there is no such file. Their syntax is that of
/// gitignore(5), and a line such as `!node_modules` brings something along after all.
pub fn pack(
    directory: &Path,
    writer: impl Write,
    options: &PackOptions,
) -> Result<Summary, PackError> {
    match options.compression {
        Compression::Gzip => {
            let encoder: GzEncoder<_> =
                GzBuilder::new().mtime(0).write(writer, flate2::Compression::default());
            let (encoder, summary) = Packer::pack(directory, encoder, options)?;
            encoder.finish()?.flush()?;
            Ok(summary)
        }
        Compression::Zstd => {
            let encoder = zstd::Encoder::new(writer, zstd::DEFAULT_COMPRESSION_LEVEL)?;
            let (encoder, summary) = Packer::pack(directory, encoder, options)?;
            encoder.finish()?.flush()?;
            Ok(summary)
        }
    }
}

struct Packer<'a, W: Write> {
    root: &'a Path,
    ignored: Option<Ignored>,
    builder: Builder<W>,
    summary: Summary,
}

impl<'a, W: Write> Packer<'a, W> {
    fn pack(root: &'a Path, writer: W, options: &PackOptions) -> Result<(W, Summary), PackError> {
        let ignored = (!options.everything).then(|| Ignored::of(root)).transpose()?;
        let builder = Builder::new(writer);
        let mut packer = Self { root, ignored, builder, summary: Summary::default() };
        packer.directory(Path::new(""))?;
        Ok((packer.builder.into_inner()?, packer.summary))
    }

    /// Adds what is in a directory; `relative` is its path below the root.
    fn directory(&mut self, relative: &Path) -> Result<(), PackError> {
        let path = self.root.join(relative);
        let list = || -> io::Result<Vec<_>> {
            let mut names = fs::read_dir(&path)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            Ok(names)
        };
        for name in list().map_err(|source| PackError::Read { path: path.clone(), source })? {
            self.entry(&relative.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, relative: &Path) -> Result<(), PackError> {
        let path = self.root.join(relative);
        let read = |source| PackError::Read { path: path.clone(), source };
        let kind = path.symlink_metadata().map_err(read)?.file_type();
        if self.ignored.as_ref().is_some_and(|ignored| ignored.contains(&path, kind.is_dir())) {
            self.summary.left_out += 1;
            self.summary.environment_files += u64::from(is_environment_file(relative));
        } else if kind.is_dir() {
            self.builder.append_data(
                &mut header(EntryType::Directory, 0o755, 0),
                relative,
                io::empty(),
            )?;
            self.summary.directories += 1;
            self.directory(relative)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(read)?;
            self.link(relative, target)?;
        } else if kind.is_file() {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty());
            let file = File::from(file.map_err(|error| read(error.into()))?);
            self.file(relative, file)?;
        } else {
            self.summary.left_out += 1;
        }
        Ok(())
    }

    fn link(&mut self, relative: &Path, target: PathBuf) -> Result<(), PackError> {
        let parent = relative.parent().unwrap_or(Path::new(""));
        if !stays_inside(parent, &target) {
            return Err(PackError::Link { path: relative.into(), target });
        }
        self.builder.append_link(&mut header(EntryType::Symlink, 0o777, 0), relative, &target)?;
        self.summary.links += 1;
        Ok(())
    }

    fn file(&mut self, relative: &Path, file: File) -> Result<(), PackError> {
        let read = |source| PackError::Read { path: self.root.join(relative), source };
        let metadata = file.metadata().map_err(read)?;
        let size = metadata.len();
        let mode = if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        // The size is in front of the content, so it must stay true.
        let mut content = file.take(size);
        self.builder.append_data(
            &mut header(EntryType::Regular, mode, size),
            relative,
            &mut content,
        )?;
        if content.limit() > 0 {
            return Err(PackError::Changed { path: relative.into() });
        }
        self.summary.files += 1;
        self.summary.bytes += size;
        Ok(())
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
