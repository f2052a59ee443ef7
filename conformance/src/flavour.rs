//! On what a case runs: a runtime, a fixture function for it, and how that one is loaded.

use std::{collections::BTreeMap, fs, io::Write, path::PathBuf, sync::OnceLock};

use anyhow::Context;
use serde::Deserialize;

use crate::{folder, server};

/// One row of `functions/flavours.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flavour {
    /// What test output calls it.
    pub name: String,
    /// What `--runtime` takes.
    pub runtime: String,
    /// Where the fixture is, below `functions/`.
    folder: String,
    /// What the fixture's files end with.
    pub extension: String,
    /// The file that defines the function.
    pub entrypoint: String,
    /// Whether Hearth must be told that file's name: it is not the runtime's default.
    #[serde(default)]
    pub is_named: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flavours {
    flavour: Vec<Flavour>,
}

#[derive(Deserialize)]
struct Offered {
    name: String,
    status: String,
    found: Vec<String>,
    get: String,
}

impl Flavour {
    /// The flavours that run here. Those whose interpreter is missing are reported, once.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Flavour>> = OnceLock::new();
        AVAILABLE.get_or_init(|| find().expect("`hearth runtimes` lists them"))
    }

    /// All flavours, whether they run here or not.
    ///
    /// # Panics
    ///
    /// If `functions/flavours.toml` is not what it should be.
    pub fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Flavour>> = OnceLock::new();
        ALL.get_or_init(|| read().expect("the flavours' file"))
    }

    /// The first flavour of a runtime, if it runs here.
    pub fn of(runtime: &str) -> Option<&'static Self> {
        Self::available().iter().find(|flavour| flavour.runtime == runtime)
    }

    /// The flavour for what does not depend on the language.
    ///
    /// # Panics
    ///
    /// If no interpreter at all is there.
    pub fn any() -> &'static Self {
        Self::available().first().expect("`hearth runtimes` finds an interpreter")
    }

    /// The versions of its interpreter that are on this machine.
    ///
    /// # Panics
    ///
    /// If `hearth runtimes` does not list them.
    pub fn versions(&self) -> Vec<String> {
        let offered = offered().expect("`hearth runtimes` lists them").into_iter();
        offered.filter(|runtime| runtime.name == self.runtime).flat_map(|it| it.found).collect()
    }

    /// The fixture's folder.
    pub fn folder(&self) -> PathBuf {
        folder().join("functions").join(&self.folder)
    }
}

fn read() -> anyhow::Result<Vec<Flavour>> {
    let path = folder().join("functions/flavours.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let Flavours { flavour } = toml::from_str(&text)?;
    Ok(flavour)
}

fn find() -> anyhow::Result<Vec<Flavour>> {
    let missing = missing_runtimes()?;
    let is_there = |flavour: &Flavour| !missing.contains_key(&flavour.runtime);
    for flavour in Flavour::all().iter().filter(|flavour| !is_there(flavour)) {
        // Not `eprintln!`, which passing tests swallow.
        let get = &missing[&flavour.runtime];
        writeln!(std::io::stderr(), "skipped: {}: no interpreter; {get}", flavour.name)?;
    }
    Ok(Flavour::all().iter().filter(|flavour| is_there(flavour)).cloned().collect())
}

/// Runtimes without an interpreter on this machine, and how to get one.
fn missing_runtimes() -> anyhow::Result<BTreeMap<String, String>> {
    let missing = offered()?.into_iter().filter(|runtime| runtime.status != "ready");
    Ok(missing.map(|runtime| (runtime.name, runtime.get)).collect())
}

fn offered() -> anyhow::Result<Vec<Offered>> {
    let output = server::hearth().args(["runtimes", "--json"]).output()?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Defines a test for each runtime: `name::node`, `name::python`, …
#[macro_export]
macro_rules! on_each_runtime {
    ($(fn $name:ident($flavour:ident: &Flavour) $body:block)+) => {$(
        mod $name {
            use super::*;

            fn holds($flavour: &$crate::flavour::Flavour) $body

            #[test]
            fn node() {
                if let Some(flavour) = $crate::flavour::Flavour::of("node") {
                    holds(flavour);
                }
            }

            #[test]
            fn python() {
                if let Some(flavour) = $crate::flavour::Flavour::of("python") {
                    holds(flavour);
                }
            }
        }
    )+};
}
