use std::{os::unix::ffi::OsStrExt, path::Path};

use anyhow::Context;
use model::FunctionName;

use crate::exit::{Failure, Fatal};

/// A function is called like its folder, as that was typed: a link has a name of its own. `.`, `..`
/// and a slash at the end stand for a folder that is called something.
///
/// A name is never changed silently: what it would become may be another function.
pub(crate) fn of_folder(directory: &Path) -> anyhow::Result<FunctionName> {
    let typed = directory.as_os_str().as_bytes().rsplit(|byte| *byte == b'/').next();
    let folder = match typed {
        None | Some(b"" | b"." | b"..") => {
            let path = directory.canonicalize();
            let path = path.context("could not find out what the folder is called")?;
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        Some(name) => String::from_utf8_lossy(name).into_owned(),
    };
    folder.parse().map_err(|error| {
        let remedy = match nearest(&folder) {
            Some(name) => format!("choose one, such as --name {name}"),
            None => "choose one with --name".into(),
        };
        let message =
            format!("the function cannot be called `{folder}` like its folder ({error}); {remedy}");
        Fatal::new(Failure::Usage, message).into()
    })
}

/// `My_Function.v2` becomes `my-function-v2`.
fn nearest(text: &str) -> Option<FunctionName> {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
        } else if !name.ends_with('-') && !name.is_empty() {
            name.push('-');
        }
    }
    name.truncate(63);
    name.trim_end_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_offered_that_is_near() {
        let long = "x".repeat(70);
        let longest = "x".repeat(63);
        for (folder, expected) in [
            ("hello", Some("hello")),
            ("My_Function.v2", Some("my-function-v2")),
            ("-- a  b --", Some("a-b")),
            ("größe", Some("gr-e")),
            (long.as_str(), Some(longest.as_str())),
            ("...", None),
            ("", None),
        ] {
            let name = nearest(folder);
            assert_eq!(name.as_ref().map(FunctionName::as_str), expected, "{folder:?}");
        }
    }
}
