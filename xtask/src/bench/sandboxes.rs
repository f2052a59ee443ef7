//! Ways of starting an empty program that a fresh instance is held against.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::time::Instant;

use super::stage::{SEARCH_PATH, isolated};

/// Makes a command that runs a program in some kind of sandbox.
#[derive(Debug)]
pub(crate) enum Sandbox {
    /// None: a child process.
    Bare,
    /// Bubblewrap with every namespace unshared and the host's `/usr`.
    Bubblewrap(PathBuf),
    /// `runc run` of a bundle with five namespaces, its default cgroups and the host's `/usr`.
    Runc {
        /// The program.
        program: PathBuf,
        /// A folder with `config.json` and `rootfs`.
        bundle: PathBuf,
    },
}

impl Sandbox {
    /// Bubblewrap, if it is installed.
    pub(crate) fn bubblewrap() -> anyhow::Result<Self> {
        Ok(Self::Bubblewrap(find("bwrap")?))
    }

    /// Runc with a bundle for one program, if it is installed.
    pub(crate) fn runc(directory: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let program = find("runc")?;
        let bundle = directory.to_owned();
        write_bundle(&bundle, arguments)
            .with_context(|| format!("write a bundle to `{}`", bundle.display()))?;
        Ok(Self::Runc { program, bundle })
    }

    /// Runs the program from start to exit and says how long that took.
    ///
    /// With runc it is the bundle's program that runs.
    pub(crate) fn run(&self, arguments: &[&str]) -> anyhow::Result<Duration> {
        let mut command = isolated(self.command(arguments));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let status = command.status().context("start the sandbox")?;
        let took = start.elapsed();
        ensure!(status.success(), "the sandbox ended with {status}");
        Ok(took)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        match self {
            Self::Bare => {
                let mut command = Command::new(arguments[0]);
                command.args(&arguments[1..]);
                command
            }
            Self::Bubblewrap(program) => {
                let mut command = Command::new(program);
                command.args(["--unshare-all", "--die-with-parent", "--new-session"]);
                command.args(["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"]);
                command.args(["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]);
                command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--"]);
                command.args(arguments);
                command
            }
            Self::Runc { program, bundle } => {
                static SERIAL: AtomicU32 = AtomicU32::new(0);
                let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
                let id = format!("hearth-bench-{}-{serial}", std::process::id());
                let mut command = Command::new(program);
                command.arg("run").arg("--bundle").arg(bundle).arg(id);
                command
            }
        }
    }
}

/// A program on the search path of everything that is measured.
fn find(program: &str) -> anyhow::Result<PathBuf> {
    let candidates = SEARCH_PATH.split(':').map(|directory| Path::new(directory).join(program));
    candidates
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed"))
}

fn write_bundle(bundle: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let root = bundle.join("rootfs");
    for directory in ["usr", "proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for link in ["bin", "lib", "lib64"] {
        symlink(Path::new("usr").join(link), root.join(link))?;
    }
    let mount = |kind: &str, to: &str, source: &str, options: &[&str]| json!({ "type": kind, "destination": to, "source": source, "options": options });
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": [format!("PATH={SEARCH_PATH}")],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            mount("proc", "/proc", "proc", &[]),
            mount("tmpfs", "/dev", "tmpfs", &["nosuid", "mode=755", "size=64k"]),
            mount("tmpfs", "/tmp", "tmpfs", &["nosuid", "nodev"]),
            mount("bind", "/usr", "/usr", &["rbind", "ro"]),
        ],
        "linux": { "namespaces": namespaces },
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_no_measurement() {
        assert!(Sandbox::Bare.run(&["true"]).is_ok());
        assert!(Sandbox::Bare.run(&["false"]).is_err());
        assert!(Sandbox::Bare.run(&["no-such-program"]).is_err());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = find("no-such-program").expect_err("not there");
        assert_eq!(error.to_string(), "no-such-program is not installed");
    }
}
