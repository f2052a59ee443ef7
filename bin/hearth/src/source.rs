//! From a user's folder to an artifact: a copy, with what the install step adds.

use std::{fs, io, os::unix::fs::lchown, path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use protocol::Pace;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::Command,
    time::{Instant, timeout},
};

use crate::{
    exit::{Failure, Fatal},
    runtimes::{Interpreter, Runtime},
    supervisor,
};

/// How long an install step may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Version control is not part of a function.
const LEFT_OUT: [&str; 2] = [".git", ".hg"];

/// Copies directories, files and links; leaves out anything else, such as sockets.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("could not make {}", to.display()))?;
    let entries =
        fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)
                .with_context(|| format!("could not copy {}", source.display()))?;
        }
    }
    Ok(())
}

/// Gives a tree to a user of the host, and to the group of the same number.
pub(crate) fn give_to(tree: &Path, owner: u32) -> io::Result<()> {
    lchown(tree, Some(owner), Some(owner))?;
    if tree.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(tree)? {
            give_to(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

/// The file that defines the function.
pub(crate) fn entrypoint(
    source: &Path,
    runtime: &Runtime,
    given: Option<&str>,
) -> anyhow::Result<String> {
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return Ok(given.to_owned());
    }
    runtime.entrypoints.iter().find(|file| source.join(file).is_file()).cloned().ok_or_else(|| {
        let message = format!(
            "no entrypoint in {}: looked for {}; name it with --entrypoint",
            source.display(),
            runtime.entrypoints.join(", ")
        );
        Fatal::new(Failure::Usage, message).into()
    })
}

/// Where the output of an install step goes.
#[derive(Clone, Copy)]
pub(crate) enum Output<'a> {
    /// To standard error: standard output is for what scripts read.
    Terminal,
    /// To whoever deploys, in pieces.
    Listener(&'a (dyn Fn(String) + Send + Sync)),
}

/// Whether a source asks for packages to be installed.
pub(crate) fn has_install(source: &Path, runtime: &Runtime) -> bool {
    manifest_of(source, runtime).is_some()
}

/// The file that asks for packages to be installed, if the source has it.
fn manifest_of<'a>(source: &Path, runtime: &'a Runtime) -> Option<&'a String> {
    runtime.manifest.as_ref().filter(|manifest| source.join(manifest).is_file())
}

/// Runs the runtime's install step in the copy, if the source asks for one.
///
/// It runs as the user who runs Hearth and with that user's network and package caches, as if they
/// had typed it; see `docs/decisions/`. Dropping the future kills it.
pub(crate) async fn install(
    copy: &Path,
    runtime: &Runtime,
    interpreter: &Interpreter,
    output: Output<'_>,
) -> anyhow::Result<()> {
    let Some(manifest) = manifest_of(copy, runtime) else { return Ok(()) };
    let program = interpreter.program.to_string_lossy();
    let line = runtime.install.replace("{program}", &program);
    output.say(format!("{manifest} found, installing: {line}\n"));
    let mut command = Command::new("/proc/self/exe");
    command.args([supervisor::ARGUMENT, &line]).current_dir(copy).process_group(0);
    // The supervisor ends what it started when this pipe does: with the future, or with us.
    command.stdin(Stdio::piped());
    let printed = output.connect(&mut command)?;
    let mut child = command.spawn().context("could not start the install step")?;
    // Else the output's pipe would not end with the child.
    drop(command);
    let _alive = child.stdin.take();
    let refused = |message: String| Fatal::new(Failure::Source, message);
    let ended = async { tokio::join!(child.wait(), output.pass_on(printed)).0 };
    let status = timeout(INSTALL_TIMEOUT, ended)
        .await
        .map_err(|_| refused(format!("the install step took longer than {INSTALL_TIMEOUT:?}")))??;
    if !status.success() {
        return Err(refused(format!("the install step ended with {status}")).into());
    }
    Ok(())
}

impl Output<'_> {
    fn say(self, text: String) {
        match self {
            Self::Terminal => eprint!("{text}"),
            Self::Listener(listen) => listen(text),
        }
    }

    /// Decides where a command prints; the end of a pipe if that has to be read.
    fn connect(self, command: &mut Command) -> anyhow::Result<Option<pipe::Receiver>> {
        match self {
            Self::Terminal => {
                command.stdout(io::stderr());
                Ok(None)
            }
            Self::Listener(_) => {
                let (reading, writing) = io::pipe()?;
                command.stdout(writing.try_clone()?).stderr(writing);
                Ok(Some(pipe::Receiver::from_owned_fd(reading.into())?))
            }
        }
    }

    async fn pass_on(self, printed: Option<pipe::Receiver>) {
        let (Self::Listener(listen), Some(mut printed)) = (self, printed) else { return };
        let mut buffer = [0; 8192];
        let mut pace = Pace::new(Instant::now());
        while let Ok(read @ 1..) = printed.read(&mut buffer).await {
            listen(String::from_utf8_lossy(&buffer[..read]).into_owned());
            pace.keep(Pace::ENTRY + read).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_files_and_links_but_no_history() {
        let root = std::env::temp_dir().join(format!("hearth-copy-{}", std::process::id()));
        let (from, to) = (root.join("from"), root.join("to"));
        fs::create_dir_all(from.join(".git")).expect("create");
        fs::create_dir_all(from.join("a/b")).expect("create");
        fs::write(from.join("a/b/file"), "text").expect("write");
        std::os::unix::fs::symlink("b/file", from.join("a/link")).expect("link");
        std::os::unix::net::UnixListener::bind(from.join("socket")).expect("a socket");

        copy_tree(&from, &to).expect("copy");
        assert_eq!(fs::read_to_string(to.join("a/link")).expect("read"), "text");
        assert!(to.join("a/link").is_symlink());
        assert!(!to.join(".git").exists());
        assert!(!to.join("socket").exists());
        fs::remove_dir_all(&root).expect("remove");
    }
}
