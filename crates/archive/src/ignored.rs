use std::{ffi::OsStr, path::Path};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

/// Version control and what tools leave behind: nothing a function needs.
const LEFT_OUT: [&str; 7] =
    [".git", ".hg", ".svn", ".DS_Store", "__pycache__", ".venv", IGNORE_FILES[0]];
/// The first of these that a folder has at its top says what else stays behind.
const IGNORE_FILES: [&str; 2] = [".hearthignore", ".gitignore"];

/// What stays behind when a folder is packed.
pub(crate) struct Ignored {
    rules: Gitignore,
}

impl Ignored {
    /// Reads the folder's ignore file, if it has one.
    pub(crate) fn of(directory: &Path) -> Result<Self, ignore::Error> {
        let mut builder = GitignoreBuilder::new(directory);
        let file = IGNORE_FILES.iter().map(|name| directory.join(name)).find(|path| path.is_file());
        if let Some(error) = file.and_then(|file| builder.add(file)) {
            return Err(error);
        }
        builder.build().map(|rules| Self { rules })
    }

    /// Asked on the way down only: what is in a directory that stays behind stays behind, too.
    pub(crate) fn contains(&self, path: &Path, is_directory: bool) -> bool {
        match self.rules.matched(path, is_directory) {
            Match::Ignore(_) => true,
            // `!node_modules` in the ignore file brings it along.
            Match::Whitelist(_) => false,
            Match::None => is_left_out(path),
        }
    }
}

fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    if name == OsStr::new("node_modules") {
        // The build installs them anew, for the machine that they run on. Without a manifest
        // nobody would.
        return path.with_file_name("package.json").is_file();
    }
    LEFT_OUT.iter().any(|left_out| name == OsStr::new(left_out))
}
