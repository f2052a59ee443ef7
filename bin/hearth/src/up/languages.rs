//! The runtimes of this machine, as the platform's workshop.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use adapter_sandbox::ARTIFACT_OWNER;
use anyhow::Context;
use async_trait::async_trait;
use executor::Template;
use model::{Limits, Network};
use platform::{NotOffered, Plan, Workshop, WorkshopError};

use crate::{
    parts::{self, AdapterName, Chosen},
    runtimes::{Catalogue, Interpreter, Runtime},
    source::{self, Output},
};

/// Builds sources and describes instances with the interpreters that are installed here.
pub(crate) struct Languages {
    catalogue: Catalogue,
    /// Where runtimes' files are written, a directory each.
    servers: PathBuf,
    adapter: Chosen,
    /// What functions get that ask for none.
    network: Network,
    has_users: bool,
    found: Mutex<FoundByName>,
}

type FoundByName = HashMap<(String, Version), Found>;

/// What a missing version means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Version {
    /// An error: somebody has just asked for it.
    AsNamed,
    /// One that is as close will do: after an update of the machine, functions go on.
    OrClose,
}

/// A runtime in a version, ready to be launched.
#[derive(Clone)]
struct Found {
    runtime: Runtime,
    interpreter: Interpreter,
    server: PathBuf,
}

impl Languages {
    pub(crate) fn new(
        catalogue: Catalogue,
        servers: PathBuf,
        adapter: &Chosen,
        network: Network,
    ) -> Self {
        let is_sandbox = adapter.name() == AdapterName::Sandbox;
        Self {
            catalogue,
            servers,
            adapter: adapter.clone(),
            network,
            has_users: is_sandbox && rustix::process::geteuid().is_root(),
            found: Mutex::default(),
        }
    }

    /// The runtime that was found under this name before, or is now.
    fn find(&self, name: &str, missing: Version) -> anyhow::Result<Found> {
        let key = (name.to_owned(), missing);
        if let Some(found) = self.found().get(&key) {
            return Ok(found.clone());
        }
        let (runtime, version) = self.catalogue.named(name)?;
        let shortened = match missing {
            Version::AsNamed => None,
            Version::OrClose => stand_ins(version).find_map(|version| runtime.find(version).ok()),
        };
        let interpreter = shortened.map_or_else(|| runtime.find(version), Ok)?;
        let server = self.servers.join(format!("{}-{}", runtime.name, interpreter.version));
        if !server.is_dir() {
            self.catalogue
                .write_server(runtime, &interpreter, &server)
                .context("could not write the runtime's files")?;
        }
        let found = Found { runtime: runtime.clone(), interpreter, server };
        self.found().insert(key, found.clone());
        Ok(found)
    }

    fn found(&self) -> MutexGuard<'_, FoundByName> {
        self.found.lock().expect("no panic while the lock is held")
    }
}

/// A version and those that it is a more precise one of: 3.11.2, 3.11, 3.
fn stand_ins(version: Option<&str>) -> impl Iterator<Item = Option<&str>> {
    std::iter::successors(Some(version), |version| {
        version.and_then(|version| version.rsplit_once('.')).map(|(shorter, _)| Some(shorter))
    })
}

#[async_trait]
impl Workshop for Languages {
    fn offers(&self, runtime: Option<&str>, network: Option<Network>) -> Result<(), NotOffered> {
        let missing = |error: anyhow::Error| NotOffered::Missing(format!("{error:#}"));
        if let Some(name) = runtime {
            let known = self.catalogue.named(name);
            known.map_err(|error| NotOffered::Unknown(format!("{error:#}")))?;
            self.find(name, Version::AsNamed).map_err(missing)?;
        }
        match network.and_then(|network| self.adapter.lacks(network)) {
            Some(why) => Err(NotOffered::Missing(why)),
            None => Ok(()),
        }
    }

    fn examine(
        &self,
        source: &Path,
        runtime: Option<&str>,
        entrypoint: Option<&str>,
    ) -> Result<Plan, WorkshopError> {
        let examine = || {
            let name = match runtime {
                Some(name) => name,
                None => self.catalogue.detect(source)?.name.as_str(),
            };
            let Found { runtime, interpreter, .. } = self.find(name, Version::AsNamed)?;
            let entrypoint = source::entrypoint(source, &runtime, entrypoint)?;
            let runtime = format!("{}-{}", runtime.name, interpreter.version);
            Ok(Plan { runtime, entrypoint })
        };
        examine().map_err(|error: anyhow::Error| in_words(&error, Some(source)))
    }

    fn has_build(&self, plan: &Plan, source: &Path) -> bool {
        let found = self.find(&plan.runtime, Version::OrClose);
        // An error is said by the build.
        found.map_or(true, |found| source::has_install(source, &found.runtime))
    }

    async fn build(
        &self,
        plan: &Plan,
        source: &Path,
        output: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), WorkshopError> {
        let found =
            self.find(&plan.runtime, Version::OrClose).map_err(|error| in_words(&error, None))?;
        let Found { runtime, interpreter, .. } = &found;
        source::install(source, runtime, interpreter, Output::Listener(output))
            .await
            .map_err(|error| in_words(&error, None))
    }

    fn hand_over(&self, tree: &Path) -> Result<(), WorkshopError> {
        if self.has_users {
            source::give_to(tree, ARTIFACT_OWNER)
                .map_err(|error| WorkshopError(format!("could not hand over the code: {error}")))?;
        }
        Ok(())
    }

    fn is_handed_over(&self, tree: &Path) -> io::Result<bool> {
        Ok(!self.has_users || tree.symlink_metadata()?.uid() == ARTIFACT_OWNER)
    }

    fn template(&self, runtime: &str, network: Option<Network>) -> Result<Template, WorkshopError> {
        let found = self.find(runtime, Version::OrClose).map_err(|error| in_words(&error, None))?;
        let Found { runtime, interpreter, server } = found;
        let network = network.unwrap_or(self.network);
        Ok(parts::template(&runtime, &interpreter, server, Limits::default(), network))
    }
}

/// An error with its causes; the place where a source was unpacked means nothing to anybody.
fn in_words(error: &anyhow::Error, source: Option<&Path>) -> WorkshopError {
    let text = format!("{error:#}");
    WorkshopError(match source {
        Some(source) => text.replace(&source.display().to_string(), "the source"),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_stood_in_for_by_the_closest() {
        let stand_ins: Vec<_> = stand_ins(Some("3.11.2")).collect();
        assert_eq!(stand_ins, [Some("3.11.2"), Some("3.11"), Some("3")]);
        assert_eq!(super::stand_ins(None).collect::<Vec<_>>(), [None]);
    }
}
