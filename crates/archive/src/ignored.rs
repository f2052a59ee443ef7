use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

/// Version control and what tools leave behind: nothing a function needs.
const LEFT_OUT: [&str; 7] =
    [".git", ".hg", ".svn", ".DS_Store", "__pycache__", ".venv", IGNORE_FILES[0]];
/// The first of these that a folder has at its top says what else stays behind.
const IGNORE_FILES: [&str; 2] = [".hearthignore", ".gitignore"];

/// What is for who deploys, at the top of a folder.
const SETTINGS_FILE: &str = "hearth.toml";

/// What stays behind when a folder is packed.
pub(crate) struct Ignored {
    settings_file: PathBuf,
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
        let settings_file = directory.join(SETTINGS_FILE);
        builder.build().map(|rules| Self { settings_file, rules })
    }

    /// Asked on the way down only: what is in a directory that stays behind stays behind, too.
    pub(crate) fn contains(&self, path: &Path, is_directory: bool) -> bool {
        match self.rules.matched(path, is_directory) {
            Match::Ignore(_) => true,
            // `!node_modules` in the ignore file brings it along.
            Match::Whitelist(_) => false,
            Match::None => path == self.settings_file || is_left_out(path),
        }
    }
}

/// Whether tools read variables from a file of this name.
pub(crate) fn is_environment_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name == b".env" || name.starts_with(b".env.")
}

fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    if name == OsStr::new("node_modules") {
        // The build installs them anew, for the machine that they run on. Without a manifest
        // nobody would.
        return path.with_file_name("package.json").is_file();
    }
    is_environment_file(path) || LEFT_OUT.iter().any(|left_out| name == OsStr::new(left_out))
}
