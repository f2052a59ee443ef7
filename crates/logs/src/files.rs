//! The files of functions' logs: `<directory>/<function>/<number>.ndjson`.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use model::FunctionName;

pub(crate) fn directory(root: &Path, function: &FunctionName) -> PathBuf {
    root.join(function.as_str())
}

pub(crate) fn path(root: &Path, function: &FunctionName, number: u64) -> PathBuf {
    directory(root, function).join(format!("{number:08}.ndjson"))
}

/// The numbers of a function's files, in order.
pub(crate) fn numbers(root: &Path, function: &FunctionName) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(directory(root, function)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".ndjson"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The functions that have files.
pub(crate) fn functions(root: &Path) -> io::Result<Vec<FunctionName>> {
    let mut functions = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        functions.extend(name.to_str().and_then(|name| name.parse::<FunctionName>().ok()));
    }
    Ok(functions)
}

pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a file; one that is not there does not matter.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files that are being written, at most so many open at once. The one that was not used for
/// the longest time is closed first.
pub(crate) struct OpenFiles {
    root: PathBuf,
    most: usize,
    files: HashMap<FunctionName, OpenFile>,
    uses: u64,
}

struct OpenFile {
    file: File,
    number: u64,
    used: u64,
}

impl OpenFiles {
    pub(crate) fn new(root: PathBuf, most: usize) -> Self {
        Self { root, most, files: HashMap::new(), uses: 0 }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Adds bytes at the end of a file that has `length` bytes: all of them, or none.
    pub(crate) fn append(
        &mut self,
        function: &FunctionName,
        number: u64,
        length: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let file = self.get(function, number)?;
        let outcome = file.write_all(bytes);
        if outcome.is_err() {
            // What a full disk took of it is half a line.
            let _ = file.set_len(length);
            self.close(function);
        }
        outcome
    }

    fn get(&mut self, function: &FunctionName, number: u64) -> io::Result<&mut File> {
        self.uses += 1;
        let is_open = self.files.get(function).is_some_and(|open| open.number == number);
        if !is_open {
            self.close(function);
            self.close_until(self.most.saturating_sub(1));
            let file = self.open(function, number)?;
            self.files.insert(function.clone(), OpenFile { file, number, used: 0 });
        }
        let open = self.files.get_mut(function).expect("just opened");
        open.used = self.uses;
        Ok(&mut open.file)
    }

    fn open(&self, function: &FunctionName, number: u64) -> io::Result<File> {
        let path = path(&self.root, function, number);
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directory(&directory(&self.root, function))?;
                options.open(&path)
            }
            outcome => outcome,
        }
    }

    fn close_until(&mut self, left: usize) {
        while self.files.len() > left {
            let oldest = self.files.iter().min_by_key(|(_, open)| open.used);
            let Some(function) = oldest.map(|(function, _)| function.clone()) else { return };
            self.close(&function);
        }
    }

    pub(crate) fn is_open(&self, function: &FunctionName) -> bool {
        self.files.contains_key(function)
    }

    pub(crate) fn close(&mut self, function: &FunctionName) {
        self.files.remove(function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_was_not_used_for_longest_is_closed_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut files = OpenFiles::new(directory.path().into(), 2);
        let names = ["a", "b", "c"].map(|name| name.parse::<FunctionName>().expect("a name"));
        let [a, b, c] = &names;
        for (length, function) in [(0, a), (0, b), (1, a), (0, c), (2, a), (1, b)] {
            files.append(function, 1, length, b"x").expect("written");
            assert!(files.files.len() <= 2);
        }
        assert!(files.files.contains_key(a) && files.files.contains_key(b));
        assert_eq!(fs::read(path(directory.path(), a, 1)).expect("read"), b"xxx");
    }
}
