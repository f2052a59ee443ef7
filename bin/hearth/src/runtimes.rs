//! Which runtimes there are: those built into the program, or those of a directory.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use model::RuntimeName;
use rust_embed::RustEmbed;
use serde::{Deserialize, Serialize};

use crate::{
    commands::Out,
    exit::{Failure, Fatal},
};

/// Where programs are looked for inside an instance, too.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

const EXAMPLES: &str = "\
Examples:
  hearth runtimes
  hearth runtimes --json | jq -r '.[] | select(.status == \"ready\") | .name'
  hearth runtimes --runtimes ./my-runtimes

A name, or a name with a version such as node-20 or python-3.11, is what --runtime takes.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Use the runtimes in this directory instead of the built-in ones.
    #[arg(long, value_name = "DIR")]
    pub(crate) runtimes: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(RustEmbed)]
#[folder = "../../runtimes"]
#[include = "*/runtime.toml"]
#[include = "*/src/*"]
#[include = "*/example/*"]
#[exclude = "*.pyc"]
struct BuiltIn;

/// A folder's `runtime.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Manifest {
    language: String,
    runtime: Vec<Runtime>,
}

/// One runtime: an engine of a language, and what its functions look like.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Runtime {
    /// What `--runtime` takes.
    pub(crate) name: RuntimeName,
    /// Names of the interpreter, in order of preference.
    programs: Vec<String>,
    /// What makes the interpreter print its version.
    version_arguments: Vec<String>,
    /// What makes it print, a line each, its real path and the directory it is installed in.
    locate_arguments: Vec<String>,
    /// Versions that are supported; a found version begins with one of them.
    versions: Vec<String>,
    /// The worker's command line.
    command: Vec<String>,
    /// The command line of a zygote that forks workers.
    #[serde(default)]
    zygote: Option<Vec<String>>,
    /// What prepares the worker's files for a faster start, once.
    #[serde(default)]
    compile: Vec<String>,
    /// A source directory with one of these files is this runtime's.
    detect: Vec<String>,
    /// Tried in order if no entrypoint is given.
    pub(crate) entrypoints: Vec<String>,
    /// The install step runs if the source has this file.
    #[serde(default)]
    pub(crate) manifest: Option<String>,
    /// The install step, for a shell.
    pub(crate) install: String,
    /// How to get the interpreter: a command.
    get: String,
    /// Where there are versions that the command does not give.
    #[serde(default)]
    releases: Option<String>,
    /// Extra environment of the worker.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    /// The folder it came from.
    #[serde(skip)]
    folder: String,
}

/// An interpreter on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interpreter {
    pub(crate) program: PathBuf,
    pub(crate) version: String,
    /// Where it is installed, if that is not below `/usr`.
    pub(crate) prefix: Option<PathBuf>,
}

/// All runtimes, and where their files come from.
pub(crate) struct Catalogue {
    directory: Option<PathBuf>,
    pub(crate) runtimes: Vec<Runtime>,
}

impl Catalogue {
    /// Reads the built-in runtimes, or a directory's.
    pub(crate) fn load(directory: Option<&Path>) -> anyhow::Result<Self> {
        let manifests = match directory {
            None => built_in_manifests(),
            Some(directory) => manifests_in(directory)?,
        };
        let mut runtimes = Vec::new();
        for (folder, text) in manifests {
            let manifest: Manifest = toml::from_str(&text)
                .with_context(|| format!("{folder}/runtime.toml is not valid"))?;
            tracing::debug!(language = manifest.language, folder, "runtimes read");
            runtimes.extend(
                manifest
                    .runtime
                    .into_iter()
                    .map(|runtime| Runtime { folder: folder.clone(), ..runtime }),
            );
        }
        Ok(Self { directory: directory.map(Path::to_path_buf), runtimes })
    }

    /// The runtime that `--runtime` names, and the version it asks for.
    pub(crate) fn named<'a>(&self, text: &'a str) -> anyhow::Result<(&Runtime, Option<&'a str>)> {
        let by_name =
            |name: &str| self.runtimes.iter().find(|runtime| runtime.name.as_str() == name);
        if let Some(runtime) = by_name(text) {
            return Ok((runtime, None));
        }
        let split = text.rsplit_once('-').and_then(|(name, v)| Some((by_name(name)?, Some(v))));
        split.ok_or_else(|| {
            let known: Vec<_> = self.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
            let message = format!("no runtime `{text}`; there are: {}", known.join(", "));
            Fatal::new(Failure::Usage, message).into()
        })
    }

    /// The runtime whose source this looks like.
    pub(crate) fn detect(&self, source: &Path) -> anyhow::Result<&Runtime> {
        let is_of = |runtime: &&Runtime| {
            runtime
                .detect
                .iter()
                .chain(&runtime.entrypoints)
                .any(|file| source.join(file).is_file())
        };
        self.runtimes.iter().find(is_of).ok_or_else(|| {
            let looked_for: Vec<_> = self
                .runtimes
                .iter()
                .flat_map(|runtime| &runtime.detect)
                .map(String::as_str)
                .collect();
            let message = format!(
                "cannot tell which runtime {} is for: it has none of {}; name one with --runtime",
                source.display(),
                looked_for.join(", ")
            );
            Fatal::new(Failure::Usage, message).into()
        })
    }

    /// The files of a small function for a built-in runtime, by their names.
    pub(crate) fn example(&self, runtime: &Runtime) -> Vec<(String, Vec<u8>)> {
        let prefix = format!("{}/example/", runtime.folder);
        BuiltIn::iter()
            .filter_map(|path| {
                let name = path.strip_prefix(&prefix)?.to_owned();
                Some((name, BuiltIn::get(&path)?.data.into_owned()))
            })
            .collect()
    }

    /// Writes a runtime's files to a directory, as an adapter wants them.
    pub(crate) fn write_server(
        &self,
        runtime: &Runtime,
        interpreter: &Interpreter,
        to: &Path,
    ) -> anyhow::Result<()> {
        let prefix = format!("{}/src/", runtime.folder);
        fs::create_dir_all(to.join("src/function"))?;
        match &self.directory {
            Some(directory) => {
                crate::source::copy_tree(&directory.join(&prefix), &to.join("src"))?;
            }
            None => {
                for path in BuiltIn::iter().filter(|path| path.starts_with(&prefix)) {
                    let file = BuiltIn::get(&path).expect("it was just listed");
                    let target = to.join("src").join(&path[prefix.len()..]);
                    fs::create_dir_all(target.parent().expect("it has a directory"))?;
                    fs::write(&target, &file.data)?;
                }
            }
        }
        runtime.compile(interpreter, to)?;
        make_readable(to)?;
        Ok(())
    }
}

/// Whoever an instance runs as must be able to read its runtime, whatever our umask is.
fn make_readable(directory: &Path) -> std::io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_readable(&entry.path())?;
        } else {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

fn built_in_manifests() -> Vec<(String, String)> {
    BuiltIn::iter()
        .filter_map(|path| {
            let folder = path.strip_suffix("/runtime.toml")?.to_owned();
            let file = BuiltIn::get(&path)?;
            Some((folder, String::from_utf8_lossy(&file.data).into_owned()))
        })
        .collect()
}

fn manifests_in(directory: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let wrong = |what: &str| Fatal::new(Failure::Usage, format!("{} {what}", directory.display()));
    let entries = fs::read_dir(directory).map_err(|error| {
        let message = format!("could not read {}: {error}", directory.display());
        Fatal::new(Failure::NoInput, message)
    })?;
    let mut manifests = Vec::new();
    for entry in entries.flatten() {
        if let Ok(text) = fs::read_to_string(entry.path().join("runtime.toml")) {
            manifests.push((entry.file_name().to_string_lossy().into_owned(), text));
        }
    }
    if manifests.is_empty() {
        return Err(wrong("has no folder with a runtime.toml").into());
    }
    manifests.sort();
    Ok(manifests)
}

impl Runtime {
    /// The worker's command line with this interpreter.
    pub(crate) fn command(&self, interpreter: &Interpreter) -> Vec<String> {
        interpreter.complete(&self.command)
    }

    /// The command line of its zygote with this interpreter, if there is one.
    pub(crate) fn zygote(&self, interpreter: &Interpreter) -> Option<Vec<String>> {
        self.zygote.as_deref().map(|words| interpreter.complete(words))
    }

    fn compile(&self, interpreter: &Interpreter, server: &Path) -> anyhow::Result<()> {
        let (program, server) = (interpreter.program.to_string_lossy(), server.to_string_lossy());
        let mut words = self
            .compile
            .iter()
            .map(|word| word.replace("{program}", &program).replace("{server}", &server));
        let Some(first) = words.next() else { return Ok(()) };
        let output = Command::new(first).args(words).env_clear().stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("could not compile {}'s worker", self.name))?;
        if !output.status.success() {
            // It starts slower, and works.
            let said = String::from_utf8_lossy(&output.stderr);
            tracing::warn!(runtime = %self.name, said = said.trim(), "the worker was not compiled");
        }
        Ok(())
    }

    /// Finds an interpreter of a version, or of any supported version.
    pub(crate) fn find(&self, version: Option<&str>) -> anyhow::Result<Interpreter> {
        let found = self.found();
        let wanted = |interpreter: &&Interpreter| match version {
            Some(version) => is_version(&interpreter.version, version),
            None => self.is_supported(interpreter),
        };
        found.iter().find(wanted).cloned().ok_or_else(|| {
            let versions: Vec<_> = found.iter().map(|found| found.version.as_str()).collect();
            let found = if versions.is_empty() { "none".into() } else { versions.join(", ") };
            let asked = version.map(|version| format!(" {version}")).unwrap_or_default();
            let message = format!(
                "no {}{asked} on this machine (found: {found}); get it: {}",
                self.name,
                self.advice(version)
            );
            Fatal::new(Failure::Unavailable, message).into()
        })
    }

    /// How to get an interpreter, of a version if one is asked for. A command is not advised for what
    /// it would not give.
    fn advice(&self, version: Option<&str>) -> String {
        let package = package(&self.get);
        let packaged = package.and_then(|package| find_version(&candidate(package)?));
        let elsewhere = self.releases.as_ref().map_or(String::new(), |releases| {
            format!("{releases} (and put its directory into PATH)")
        });
        let is_wanted = |packaged: &str| match version {
            Some(version) => is_version(packaged, version),
            None => self.versions.iter().any(|version| is_version(packaged, version)),
        };
        match packaged {
            Some(packaged) if is_wanted(&packaged) => format!("{} (gives {packaged})", self.get),
            Some(packaged) if elsewhere.is_empty() => {
                format!("another way than `{}`, which would give {packaged}", self.get)
            }
            Some(packaged) => {
                format!("{elsewhere}; `{}` would give {packaged}", self.get)
            }
            None if elsewhere.is_empty() || version.is_none() => self.get.clone(),
            None => format!("{elsewhere}, or `{}` if that gives it here", self.get),
        }
    }

    fn is_supported(&self, interpreter: &Interpreter) -> bool {
        self.versions.iter().any(|version| is_version(&interpreter.version, version))
    }

    /// All its interpreters on the search path, each version once.
    fn found(&self) -> Vec<Interpreter> {
        let path = std::env::var("PATH").unwrap_or_else(|_| SYSTEM_PATH.into());
        let directories: Vec<_> = std::env::split_paths(&path).collect();
        let mut found: Vec<Interpreter> = Vec::new();
        for name in &self.programs {
            let candidates = directories.iter().map(|directory| directory.join(name));
            for candidate in candidates.filter(|candidate| is_executable(candidate)) {
                if let Some(interpreter) = self.examine(&candidate)
                    && !found.iter().any(|known| known.version == interpreter.version)
                {
                    found.push(interpreter);
                }
            }
        }
        found
    }

    fn examine(&self, candidate: &Path) -> Option<Interpreter> {
        let version = find_version(&ask(candidate, &self.version_arguments)?)?;
        let located = ask(candidate, &self.locate_arguments)?;
        let mut lines = located.lines().map(PathBuf::from);
        let program = fs::canonicalize(lines.next()?).ok()?;
        let prefix = match lines.next() {
            Some(prefix) => fs::canonicalize(prefix).ok()?,
            None => program.parent()?.parent()?.to_path_buf(),
        };
        let is_outside = !prefix.starts_with("/usr") || !program.starts_with("/usr");
        Some(Interpreter { program, version, prefix: is_outside.then_some(prefix) })
    }
}

impl Interpreter {
    fn complete(&self, words: &[String]) -> Vec<String> {
        let program = self.program.to_string_lossy();
        words.iter().map(|word| word.replace("{program}", &program)).collect()
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// What a program prints, with no more of our environment than shims need.
fn ask(program: &Path, arguments: &[String]) -> Option<String> {
    let kept = ["PATH", "HOME", "PYENV_ROOT", "PYENV_VERSION", "NVM_DIR", "VOLTA_HOME"];
    let environment = kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let both = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&both).into_owned())
}

/// The first package that an `apt-get install` names.
fn package(get: &str) -> Option<&str> {
    let packages = get.strip_prefix("apt-get install ")?;
    packages.split_whitespace().find(|word| !word.starts_with('-'))
}

/// The version of a package that this machine would install, if it has any idea.
fn candidate(package: &str) -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["policy", package])
        .env_clear()
        .envs([("PATH", SYSTEM_PATH), ("LC_ALL", "C")])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    candidate_in(&String::from_utf8_lossy(&output.stdout))
}

/// What `apt-cache policy` says would be installed.
fn candidate_in(policy: &str) -> Option<String> {
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    Some(line.trim().to_owned()).filter(|version| version != "(none)")
}

/// The first `x.y` or `x.y.z` in a text.
fn find_version(text: &str) -> Option<String> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.'))
        .map(str::to_owned)
}

/// Whether a version is the wanted one or a more precise one: 20.1.2 is a 20 and a 20.1.
fn is_version(found: &str, wanted: &str) -> bool {
    found.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    offered: &'a [String],
    found: Vec<String>,
    status: &'static str,
    get: &'a str,
    #[serde(skip)]
    runtime: &'a Runtime,
}

/// `hearth runtimes`
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(arguments.runtimes.as_deref())?;
    let rows: Vec<Row<'_>> = catalogue.runtimes.iter().map(row).collect();
    let mut out = Out::new();
    if arguments.json {
        return out.json(&rows);
    }
    writeln!(out, "{:<10} {:<32} {:<22} STATUS", "RUNTIME", "OFFERED", "FOUND")?;
    for Row { name, offered, found, status, runtime, get: _ } in rows {
        let is_ready = status == "ready";
        let hint = if is_ready { String::new() } else { format!(": {}", runtime.advice(None)) };
        let (offered, found) = (offered.join(" "), found.join(" "));
        writeln!(out, "{name:<10} {offered:<32} {found:<22} {status}{hint}")?;
    }
    Ok(())
}

fn row(runtime: &Runtime) -> Row<'_> {
    let found = runtime.found();
    let status = match (found.is_empty(), found.iter().any(|found| runtime.is_supported(found))) {
        (_, true) => "ready",
        (false, false) => "unsupported version",
        (true, _) => "missing",
    };
    Row {
        name: runtime.name.as_str(),
        offered: &runtime.versions,
        found: found.into_iter().map(|found| found.version).collect(),
        status,
        get: &runtime.get,
        runtime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_runtimes_are_valid() {
        let catalogue = Catalogue::load(None).expect("valid manifests");
        let names: Vec<_> =
            catalogue.runtimes.iter().map(|runtime| runtime.name.as_str()).collect();
        assert!(names.contains(&"node"), "{names:?}");
        assert!(names.contains(&"python"), "{names:?}");
    }

    #[test]
    fn a_zygote_is_the_same_interpreter() {
        let catalogue = Catalogue::load(None).expect("valid manifests");
        let (python, _) = catalogue.named("python").expect("is built in");
        let program = PathBuf::from("/opt/python/bin/python3");
        let interpreter = Interpreter { program, version: "3.13.0".into(), prefix: None };
        let zygote = python.zygote(&interpreter).expect("has one");
        let command = python.command(&interpreter);
        assert_eq!(zygote[0], "/opt/python/bin/python3");
        assert_eq!(zygote[..command.len()], command[..], "with the same options");
        let (node, _) = catalogue.named("node").expect("is built in");
        assert_eq!(node.zygote(&interpreter), None);
    }

    #[test]
    fn a_runtime_may_be_named_with_a_version() {
        let catalogue = Catalogue::load(None).expect("valid manifests");
        for (text, expected) in [
            ("node", Some(("node", None))),
            ("node-20", Some(("node", Some("20")))),
            ("python-3.11", Some(("python", Some("3.11")))),
            ("cobol", None),
            ("cobol-85", None),
        ] {
            let named = catalogue.named(text).ok();
            let named = named.map(|(runtime, version)| (runtime.name.as_str(), version));
            assert_eq!(named, expected, "{text}");
        }
    }

    #[test]
    fn what_a_command_would_give_is_read_from_the_package_list() {
        assert_eq!(package("apt-get install -y nodejs npm"), Some("nodejs"));
        assert_eq!(package("brew install node"), None);
        let policy =
            "nodejs:\n  Installed: (none)\n  Candidate: 1:20.19.2+dfsg-1\n  Version table:\n";
        let candidate = candidate_in(policy).expect("there is one");
        assert_eq!(find_version(&candidate).as_deref(), Some("20.19.2"));
        assert_eq!(candidate_in("nodejs:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }

    #[test]
    fn versions_match_by_their_parts() {
        for (found, wanted, expected) in [
            ("20.20.2", "20", true),
            ("20.20.2", "20.20", true),
            ("20.20.2", "20.20.2", true),
            ("20.20.2", "2", false),
            ("3.11.7", "3.1", false),
        ] {
            assert_eq!(is_version(found, wanted), expected, "{found} {wanted}");
        }
        assert_eq!(find_version("Python 3.11.7\n").as_deref(), Some("3.11.7"));
        assert_eq!(find_version("v20.20.2").as_deref(), Some("20.20.2"));
        assert_eq!(find_version("none"), None);
    }
}
