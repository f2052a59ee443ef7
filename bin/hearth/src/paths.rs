//! Paths that users give, and directories that must be nobody else's.
//!
//! A path is made absolute when it is read: what uses it later may run elsewhere, as instances and
//! the launcher do. On the command line and in the environment a relative path begins at the current
//! directory; in a file of settings it begins at the file's own.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clap::builder::{PathBufValueParser, TypedValueParser};
use rustix::fs::OFlags;
use tracing::warn;

/// Takes an argument's path, and makes it absolute. Links stay links.
pub(crate) fn absolute() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| to_absolute(&path))
}

/// Why a path cannot be made absolute.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AbsoluteError {
    #[error("a path has at least one character")]
    Empty,
    #[error("could not find the current directory")]
    CurrentDirectory(#[source] io::Error),
}

/// The same path, from the root. Links stay links.
pub(crate) fn to_absolute(path: &Path) -> Result<PathBuf, AbsoluteError> {
    std::path::absolute(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => AbsoluteError::Empty,
        _ => AbsoluteError::CurrentDirectory(error),
    })
}

/// A path that is written in a file, which itself has an absolute path.
pub(crate) fn beside(file: &Path, path: PathBuf) -> PathBuf {
    file.parent().map_or_else(|| path.clone(), |directory| directory.join(&path))
}

/// Where a daemon keeps everything, and commands look for it, if nobody says otherwise.
pub(crate) fn default_data() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/hearth".into();
    }
    std::env::home_dir().unwrap_or_else(std::env::temp_dir).join(".local/share/hearth")
}

/// Why a directory is not fit for secrets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateError {
    #[error("could not {step} {}", path.display())]
    Files { step: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} belongs to the user {owner}, and this program runs as {user}: whoever owns it can read \
         and replace what is in it. Run as {owner}, or give it away with `chown -R {user} {}`",
        path.display(), path.display()
    )]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error(
        "{} is a link that the user {owner} has made, and this program runs as {user}; remove it, \
         or choose another directory", path.display()
    )]
    Link { path: PathBuf, owner: u32, user: u32 },
}

/// Makes a directory that only its owner can look into, or makes one that exists such a directory.
/// One that is somebody else's is refused, and so is somebody else's link to one.
///
/// What is in it is then out of others' reach whatever modes it has itself. Its parents are made
/// with the usual mode.
pub(crate) fn make_private(directory: &Path) -> Result<(), PrivateError> {
    let failed = |step| move |source| PrivateError::Files { step, path: directory.into(), source };
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(|source| PrivateError::Files {
            step: "make",
            path: parent.into(),
            source,
        })?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make")(error));
        }
        _ => {}
    }
    let user = rustix::process::geteuid().as_raw();
    let named = fs::symlink_metadata(directory).map_err(failed("look at"))?;
    // In a directory that others write to, such as /tmp, a name may be a trap.
    if named.is_symlink() && ![user, 0].contains(&named.uid()) {
        return Err(PrivateError::Link { path: directory.into(), owner: named.uid(), user });
    }
    // Open before it is looked at, so that it is the same directory that is changed.
    let mut options = File::options();
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).expect("flags are small");
    let opened = options.read(true).custom_flags(flags).open(directory).map_err(failed("open"))?;
    let found = opened.metadata().map_err(failed("look at"))?;
    if found.uid() != user {
        return Err(PrivateError::Owner { path: directory.into(), owner: found.uid(), user });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        opened.set_permissions(fs::Permissions::from_mode(0o700)).map_err(failed("close"))?;
        warn!(
            path = %directory.display(),
            mode = format!("{mode:04o}"),
            "others could look into this directory; it has the mode 0700 now"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use clap::Parser;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("hearth-paths-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("made");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    #[test]
    fn a_relative_path_begins_at_the_current_directory() {
        #[derive(Parser)]
        struct Line {
            #[arg(value_parser = absolute())]
            path: PathBuf,
        }
        let here = std::env::current_dir().expect("there is one");
        for (given, expected) in [
            ("d", here.join("d")),
            ("./d", here.join("d")),
            ("/d", "/d".into()),
            ("../d", here.join("../d")),
        ] {
            let line = Line::try_parse_from(["x", given]).expect(given);
            assert_eq!(line.path, expected, "{given}");
        }
        assert!(Line::try_parse_from(["x", ""]).is_err(), "no path at all");
        assert_eq!(beside(Path::new("/etc/h.toml"), "d".into()), Path::new("/etc/d"));
        assert_eq!(beside(Path::new("/etc/h.toml"), "/d".into()), Path::new("/d"));
    }

    #[test]
    fn a_directory_is_made_for_its_owner_alone_or_closed() {
        let scratch = Scratch::new("closed");
        let path = scratch.0.join("parent/private");
        make_private(&path).expect("made");
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("opened");
        make_private(&path).expect("closed");
        assert_eq!(mode(&path), 0o700);
        let link = scratch.0.join("link");
        symlink(&path, &link).expect("a link");
        make_private(&link).expect("our own link is fine");
    }

    #[test]
    fn what_belongs_to_others_is_refused() {
        let scratch = Scratch::new("others");
        let (path, link) = (scratch.0.join("theirs"), scratch.0.join("trap"));
        let own = scratch.0.join("own");
        fs::create_dir(&path).expect("made");
        fs::create_dir(&own).expect("made");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).expect("opened");
        symlink(&own, &link).expect("a link");
        if chown(&path, Some(65534), None).is_err() {
            println!("skipped: only root can give a directory to somebody else");
            return;
        }
        std::os::unix::fs::lchown(&link, Some(65534), None).expect("given away");
        assert!(matches!(make_private(&path), Err(PrivateError::Owner { owner: 65534, .. })));
        assert!(matches!(make_private(&link), Err(PrivateError::Link { owner: 65534, .. })));
        assert_eq!(mode(&own), 0o755, "nothing was changed behind the link");
        fs::write(scratch.0.join("file"), "").expect("written");
        let error = make_private(&scratch.0.join("file")).expect_err("no directory");
        assert!(matches!(error, PrivateError::Files { step: "open", .. }), "{error}");
    }
}
