//! `hearth.toml`: what a function is, and how it is served, in a file beside its source.
//!
//! The keys are the names of the flags of `hearth deploy`, and flags win. Mistakes are reported
//! together, each with its line; an unknown key with the known one that is nearest.

use std::{fs::File, io, io::Read, path::Path};

use api::SettingsPatch;
use model::{FunctionName, MOST_CONCURRENCY, MOST_INSTANCES, Network, Plain, Settings};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::exit::{Failure, Fatal};

/// What the file is called.
pub(crate) const FILE: &str = "hearth.toml";
/// The most of it that is read.
const MOST: u64 = 256 << 10;
const KEYS: [&str; 12] = [
    "name",
    "runtime",
    "entrypoint",
    "timeout",
    "memory",
    "cpus",
    "network",
    "concurrency",
    "min",
    "max",
    "idle",
    "environment",
];
/// Keys that others know, or that will come; and what to do without them.
const RESERVED: [(&str, &str); 3] = [
    ("schedules", "calls at set times are not supported yet; use cron and `hearth invoke` for now"),
    ("build", "there is no build command; the runtime installs what its manifest names"),
    ("install", "there is no install command; the runtime installs what its manifest names"),
];

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Project {
    pub(crate) name: Option<FunctionName>,
    pub(crate) runtime: Option<String>,
    pub(crate) entrypoint: Option<String>,
    pub(crate) settings: SettingsPatch,
}

impl Project {
    /// Reads a source folder's file; nothing is set if there is none.
    pub(crate) fn of(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unreadable(&path, &error).into()),
        };
        let mut bytes = Vec::new();
        file.take(MOST + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&path, &error))?;
        let wrong = |what: &str| {
            Fatal::new(Failure::Usage, format!("{} is not right: {what}", path.display()))
        };
        if bytes.len() as u64 > MOST {
            return Err(wrong("it has more than 256KiB").into());
        }
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text"))?;
        Ok(Self::parse(&text).map_err(|mistakes| wrong(&mistakes.join("; ")))?)
    }

    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let line = |at: usize| text[..at].matches('\n').count() + 1;
        let table = DeTable::parse(text).map_err(|error| {
            let at =
                error.span().map_or(String::new(), |span| format!("line {}: ", line(span.start)));
            vec![format!("{at}{}", error.message())]
        })?;
        let (mut project, mut mistakes) = (Self::default(), Vec::new());
        let mut entries: Vec<_> = table.into_inner().into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let at = line(key.span().start);
            if let Err(what) = project.set(key.get_ref(), value.get_ref()) {
                mistakes.extend(
                    what.into_iter()
                        .map(|(within, what)| format!("line {}: {what}", within.map_or(at, line))),
                );
            }
        }
        if mistakes.is_empty() { Ok(project) } else { Err(mistakes) }
    }

    /// Takes one key. Mistakes may know where they are.
    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), Vec<(Option<usize>, String)>> {
        let settings = &mut self.settings;
        let outcome = match key {
            "name" => text(value).and_then(|name| {
                self.name =
                    Some(name.parse().map_err(|error: model::InvalidId| error.to_string())?);
                Ok(())
            }),
            "runtime" => text(value).map(|text| self.runtime = Some(text)),
            "entrypoint" => text(value).map(|text| self.entrypoint = Some(text)),
            "timeout" => time(value).map(|time| settings.timeout = Some(time)),
            "idle" => time(value).map(|time| settings.idle = Some(time)),
            "memory" => checked(value, model::parse_size).map(|it| settings.memory = Some(it)),
            "network" => {
                checked(value, str::parse::<Network>).map(|it| settings.network = Some(it))
            }
            "cpus" => cpus(value).map(|cpus| settings.cpus = Some(cpus)),
            "concurrency" => {
                whole(value, 1, MOST_CONCURRENCY).map(|it| settings.concurrency = Some(it))
            }
            "min" => whole(value, 0, MOST_INSTANCES).map(|it| settings.min = Some(it)),
            "max" => whole(value, 1, MOST_INSTANCES).map(|it| settings.max = Some(it)),
            "environment" => return self.variables(value),
            _ => return Err(vec![(None, unknown(key))]),
        };
        outcome.map_err(|what| vec![(None, format!("{key}: {what}"))])
    }

    fn variables(&mut self, value: &DeValue<'_>) -> Result<(), Vec<(Option<usize>, String)>> {
        let DeValue::Table(variables) = value else {
            return Err(vec![(None, "environment: write it as a table, [environment]".into())]);
        };
        let mut mistakes = Vec::new();
        for (name, value) in variables {
            let name: &Spanned<_> = name;
            let at = Some(name.span().start);
            let name: &str = name.get_ref();
            if let Err(error) = model::check_variable(name) {
                mistakes.push((at, error.to_string()));
                continue;
            }
            match text(value.get_ref()) {
                Ok(text) => _ = self.settings.environment.insert(name.into(), Some(text)),
                Err(what) => mistakes.push((at, format!("environment.{name}: {what}"))),
            }
        }
        mistakes.sort();
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Fatal {
    Fatal::new(Failure::NoInput, format!("could not read {}: {error}", path.display()))
}

fn unknown(key: &str) -> String {
    let reserved = RESERVED.iter().find(|(name, _)| *name == key);
    if let Some((name, remedy)) = reserved {
        return format!("`{name}` cannot be set: {remedy}");
    }
    let near = client::nearest(key, KEYS.iter().map(ToString::to_string));
    let remedy = match near.first() {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are: {}", KEYS.join(", ")),
    };
    format!("unknown key `{}`; {remedy}", Plain(key))
}

fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        _ => Err("write it as text in quotes".into()),
    }
}

fn checked<T, E: ToString>(
    value: &DeValue<'_>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<String, String> {
    let text = text(value)?;
    parse(&text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn time(value: &DeValue<'_>) -> Result<String, String> {
    let wrong = "write it as text like \"500ms\", \"15s\" or \"5m\"";
    checked(value, |text| humantime::parse_duration(text).map_err(|_| wrong))
}

/// A number, or text that the flag would take.
fn cpus(value: &DeValue<'_>) -> Result<String, String> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        _ => return Err("write it as a number of processors, such as 0.5".into()),
    };
    model::parse_cpus_milli(&text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn whole(value: &DeValue<'_>, least: u32, most: u32) -> Result<u32, String> {
    let number = match value {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
}

/// The file of a new project: what is known of it, and each other key with its default.
pub(crate) fn template(name: &FunctionName, runtime: &str, entrypoint: &str) -> String {
    let Settings { timeout, limits, scale, network: _, environment: _ } = Settings::default();
    let [timeout, idle] = [timeout, scale.idle].map(humantime::format_duration);
    let (memory, cpus) =
        (model::format_size(limits.memory_bytes), model::format_cpus(limits.cpus_milli));
    let quoted = |text: &str| serde_json::to_string(text).expect("text is JSON, and so TOML");
    let (entrypoint, model::Scale { concurrency, min, max, .. }) = (quoted(entrypoint), scale);
    format!(
        "\
# How `hearth deploy` deploys this folder. Flags win over this file.
# Lines that begin with `#` set nothing: they show what holds without them.

# What the function is called.
name = \"{name}\"

# The language, and a version if it must be one, such as \"node-20\" or \"python-3.11\".
runtime = \"{runtime}\"

# The file that defines the function.
entrypoint = {entrypoint}

# How long a call may take.
# timeout = \"{timeout}\"

# Memory of an instance. \"256M\" means the same as \"256MiB\".
# memory = \"{memory}\"

# Processors of an instance.
# cpus = {cpus}

# What an instance can reach: \"egress\" (public addresses), \"none\" or \"host\".
# network = \"egress\"

# Calls at once in one instance.
# concurrency = {concurrency}

# Instances that are kept even if nobody calls, and the most instances.
# min = {min}
# max = {max}

# How long an instance may go without a call before it is stopped.
# idle = \"{idle}\"

# Variables. Whoever can read this file can read them: secrets belong into a file that stays here,
# such as .env, for `hearth deploy --env-file .env`.
[environment]
# GREETING = \"Hello\"
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_are_read() {
        let project = Project::parse(
            "name = 'hello'\nruntime = 'node-20'\nentrypoint = 'a.js'\ntimeout = '2s'\n\
             memory = '256M'\ncpus = 0.5\nnetwork = 'none'\nconcurrency = 7\nmin = 1\nmax = 0x10\n\
             idle = '5m'\n[environment]\nA = '1'\n",
        );
        let expected = Project {
            name: Some("hello".parse().expect("a name")),
            runtime: Some("node-20".into()),
            entrypoint: Some("a.js".into()),
            settings: SettingsPatch {
                reset: Vec::new(),
                environment: [("A".into(), Some("1".into()))].into(),
                timeout: Some("2s".into()),
                memory: Some("256M".into()),
                cpus: Some("0.5".into()),
                network: Some("none".into()),
                concurrency: Some(7),
                min: Some(1),
                max: Some(16),
                idle: Some("5m".into()),
            },
        };
        assert_eq!(project, Ok(expected));
        assert_eq!(Project::parse("cpus = 2").expect("right").settings.cpus.as_deref(), Some("2"));
        assert_eq!(Project::parse(""), Ok(Project::default()));
    }

    #[test]
    fn mistakes_have_lines_and_remedies_and_come_together() {
        for (text, expected) in [
            ("\nmemroy = '1G'", &["line 2: unknown key `memroy`; did you mean `memory`?"][..]),
            ("zzzzzz = 1", &["line 1: unknown key `zzzzzz`; there are: name, runtime"]),
            (
                "[[schedules]]\nat = 'noon'",
                &["line 1: `schedules` cannot be set", "not supported yet"],
            ),
            ("build = 'make'", &["`build` cannot be set"]),
            (
                "min = -1\nmax = 'x'\ntimeout = 5\nname = 'A b'\ncpus = true\nmemory = 512\n",
                &[
                    "line 1: min: write a whole number from 0",
                    "line 2: max: ",
                    "line 3: timeout: write it as text",
                    "line 4: name: ",
                    "line 5: cpus: ",
                    "line 6: memory: write it as text",
                ],
            ),
            (
                "[environment]\nA = '1'\n'B C' = '2'\nD = 3\nHEARTH_X = '4'",
                &["line 3: the variable", "line 4: environment.D: ", "line 5: the variable"],
            ),
            ("environment = 'A=1'", &["[environment]"]),
            ("name = 'a'\nname = 'b'", &["line 2: "]),
            ("x = [", &["line 1: "]),
        ] {
            let mistakes = Project::parse(text).expect_err(text).join("; ");
            for part in expected {
                assert!(mistakes.contains(part), "{text:?}: {mistakes}");
            }
        }
    }

    #[test]
    fn a_new_file_says_what_holds() {
        let name: FunctionName = "hello".parse().expect("a name");
        let text = template(&name, "node", "src/\"x\".js");
        let project = Project::parse(&text).expect("it reads");
        assert_eq!(project.name, Some(name));
        assert_eq!(project.entrypoint.as_deref(), Some("src/\"x\".js"));
        assert_eq!(project.settings, SettingsPatch::default(), "the rest is comments");
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|line| line.contains(" = ")).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let project = Project::parse(&all).expect("each comment is a line that could be set");
        let machine = model::Capacity { memory_bytes: u64::MAX, cpus_milli: u32::MAX };
        let settings = project.settings.apply(&Settings::default(), &machine).expect("right");
        let greeting = [("GREETING".to_owned(), "Hello".to_owned())].into();
        let network = Some(Network::Egress);
        assert_eq!(settings, Settings { environment: greeting, network, ..Settings::default() });
        for key in KEYS {
            assert!(text.contains(key), "{key}");
        }
    }
}
