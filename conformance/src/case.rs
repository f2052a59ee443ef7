//! Cases: a request, and what must come of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    client::{ACTION, Request, Response},
    flavour::Flavour,
    folder,
    server::{Server, Settings},
    text::{TextRule, from_hex},
};

/// A case, as one flavour runs it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its group and name.
    pub name: String,
    /// The server it needs.
    pub settings: Settings,
    request: Request,
    expected: Expected,
}

/// A case's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What holds, for people; the file's name says it in few words.
    #[serde(rename = "about")]
    _about: String,
    /// The only runtimes that the case is for.
    runtimes: Option<Vec<String>>,
    #[serde(default)]
    server: ServerPart,
    #[serde(default)]
    request: RequestPart,
    /// `Expected`, and tables named after runtimes with what is different there.
    expect: toml::Table,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServerPart {
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    entrypoint: Option<String>,
}

/// The body is at most one of `body`, `script`, `hex` and `fill`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequestPart {
    method: String,
    path: String,
    headers: BTreeMap<String, Values>,
    /// What the fixture function should do.
    action: Option<String>,
    /// The steps of the action `script`.
    script: Option<Value>,
    body: Option<String>,
    hex: Option<String>,
    /// A body of that many bytes.
    fill: Option<usize>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Expected {
    status: Option<u16>,
    headers: BTreeMap<String, HeaderRule>,
    body: Option<TextRule>,
    logs: Option<TextRule>,
    errors: Option<TextRule>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum HeaderRule {
    /// Exactly these values, in this order.
    Many(Vec<String>),
    /// One value, or none.
    One(TextRule),
}

impl Default for RequestPart {
    fn default() -> Self {
        Self {
            method: "GET".into(),
            path: "/".into(),
            headers: BTreeMap::new(),
            action: None,
            script: None,
            body: None,
            hex: None,
            fill: None,
        }
    }
}

impl Case {
    /// All cases that a flavour runs.
    ///
    /// # Errors
    ///
    /// If a file is not a case; the error names it.
    pub fn all(flavour: &Flavour) -> anyhow::Result<Vec<Self>> {
        let root = folder().join("cases");
        let mut cases = Vec::new();
        for path in files(&root)? {
            let name = path.strip_prefix(&root)?.with_extension("").display().to_string();
            let text = fs::read_to_string(&path)?;
            let case = Self::parse(&name, &text, flavour).with_context(|| name.clone())?;
            cases.extend(case);
        }
        Ok(cases)
    }

    /// None: the case is not for this flavour.
    fn parse(name: &str, text: &str, flavour: &Flavour) -> anyhow::Result<Option<Self>> {
        let text = text
            .replace("{entrypoint}", &flavour.entrypoint)
            .replace("{extension}", &flavour.extension);
        let file: File = toml::from_str(&text)?;
        let expected = file.expect_on(&flavour.runtime)?;
        if !file.is_for(flavour) {
            return Ok(None);
        }
        let settings = Settings {
            arguments: file.server.arguments,
            environment: file.server.environment,
            entrypoint: file.server.entrypoint,
        };
        let request = file.request.build()?;
        Ok(Some(Self { name: name.to_owned(), settings, request, expected }))
    }

    /// Runs the case; returns what is wrong.
    pub fn run(&self, server: &Server) -> Vec<String> {
        let response = match server.connect().call(&self.request) {
            Ok(response) => response,
            Err(error) => return vec![format!("no response: {error:#}")],
        };
        self.expected.complaints(server, &response)
    }
}

fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

impl File {
    fn is_for(&self, flavour: &Flavour) -> bool {
        let names_runtime =
            self.runtimes.as_ref().is_none_or(|names| names.contains(&flavour.runtime));
        let has_entrypoint = self.server.entrypoint.is_some()
            || self.server.environment.contains_key("OPEN_RUNTIMES_ENTRYPOINT");
        // A case with an entrypoint of its own would be the same for each flavour of a folder.
        names_runtime && !(has_entrypoint && flavour.is_named)
    }

    fn expect_on(&self, runtime: &str) -> anyhow::Result<Expected> {
        let mut common = self.expect.clone();
        let mut different = toml::Table::new();
        for flavour in Flavour::all() {
            match common.remove(&flavour.runtime) {
                Some(toml::Value::Table(table)) if flavour.runtime == runtime => different = table,
                _ => {}
            }
        }
        merge(&mut common, different);
        let expected: Expected = toml::Value::Table(common).try_into()?;
        ensure!(expected.status.is_some(), "a case expects a status");
        Ok(expected)
    }
}

/// Headers are told apart by name; anything else is replaced as a whole.
fn merge(common: &mut toml::Table, different: toml::Table) {
    for (name, value) in different {
        match (common.get_mut(&name), value) {
            (Some(toml::Value::Table(there)), toml::Value::Table(value)) if name == "headers" => {
                there.extend(value);
            }
            (_, value) => _ = common.insert(name, value),
        }
    }
}

impl RequestPart {
    fn build(self) -> anyhow::Result<Request> {
        let mut request = Request::new(&self.method, &self.path);
        let action = self.action.or(self.script.is_some().then(|| "script".to_owned()));
        if let Some(action) = action {
            request = request.header(ACTION, &action);
        }
        for (name, values) in &self.headers {
            match values {
                Values::One(value) => request = request.header(name, value),
                Values::Many(values) => {
                    request =
                        values.iter().fold(request, |request, value| request.header(name, value));
                }
            }
        }
        let bodies = [
            self.body.map(String::into_bytes),
            self.script.map(|steps| steps.to_string().into_bytes()),
            self.hex.map(|hex| from_hex(&hex).context("not hexadecimal digits")).transpose()?,
            self.fill.map(|size| vec![b'x'; size]),
        ];
        let mut bodies = bodies.into_iter().flatten();
        let body = bodies.next().unwrap_or_default();
        ensure!(bodies.next().is_none(), "a request has one body");
        Ok(request.body(body))
    }
}

impl Expected {
    fn complaints(&self, server: &Server, response: &Response) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut complain = |what: &str, complaint: Option<String>| {
            complaints.extend(complaint.map(|complaint| format!("{what}: {complaint}")));
        };
        let status = response.status();
        let expected = self.status.unwrap_or(status);
        complain("status", (status != expected).then(|| format!("{status}, not {expected}")));
        for (name, rule) in &self.headers {
            complain(name, rule.complaint(&response.head.all(name)));
        }
        if let Some(rule) = &self.body {
            complain("body", rule.complaint(Some(&response.body)));
        }
        let id = response.log_id().unwrap_or_default();
        for (kind, rule) in [("logs", &self.logs), ("errors", &self.errors)] {
            let Some(rule) = rule else { continue };
            let found = server.log_file(id, kind);
            complain(kind, rule.complaint(found.as_deref().map(str::as_bytes)));
        }
        complaints
    }
}

impl HeaderRule {
    fn complaint(&self, values: &[&str]) -> Option<String> {
        match (self, values) {
            (Self::Many(expected), values) if expected == values => None,
            (Self::One(rule), []) => rule.complaint(None),
            (Self::One(rule), [value]) => rule.complaint(Some(value.as_bytes())),
            _ => Some(format!("found {values:?}, expected {self:?}")),
        }
    }
}
