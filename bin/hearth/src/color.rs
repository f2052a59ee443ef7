//! Colours, only where they mean something: states and errors. Every text reads without them.

use std::{io::IsTerminal, sync::OnceLock};

use clap::ColorChoice;

/// Decided once, when the command line has been read.
static WHEN: OnceLock<When> = OnceLock::new();

/// When output has colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum When {
    /// On terminals, unless NO_COLOR is set or TERM is dumb.
    #[default]
    Auto,
    /// Also in pipes and files.
    Always,
    /// Nowhere.
    Never,
}

/// What a word in colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Good,
    Bad,
    /// It will be something else soon.
    Passing,
    /// Of no interest at the moment.
    Faint,
}

impl When {
    /// What the command line says, before it is read: mistakes in it have colours, too.
    pub(crate) fn of_line() -> ColorChoice {
        let mut words = std::env::args_os().skip(1);
        while let Some(word) = words.next() {
            let value = match word.to_str() {
                Some("--color") => words.next(),
                Some(word) => word.strip_prefix("--color=").map(Into::into),
                None => None,
            };
            match value.as_deref().and_then(|value| value.to_str()) {
                Some("always") => return ColorChoice::Always,
                Some("never") => return ColorChoice::Never,
                _ => {}
            }
        }
        ColorChoice::Auto
    }

    /// Decides for the rest of the program.
    pub(crate) fn choose(self) {
        WHEN.get_or_init(|| self);
    }
}

/// Whether what is written there has colours. `NO_COLOR` counts if it is not empty (no-color.org).
pub(crate) fn is_on(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match WHEN.get().copied().unwrap_or_default() {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
            stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb
        }
    }
}

impl Meaning {
    /// What a state of a function, a deployment or an instance means.
    pub(crate) fn of_state(state: &str) -> Option<Self> {
        match state {
            "active" | "idle" | "busy" => Some(Self::Good),
            "failed" | "failing" => Some(Self::Bad),
            "pending" | "deploying" | "starting" | "draining" => Some(Self::Passing),
            "superseded" | "spare" => Some(Self::Faint),
            _ => None,
        }
    }

    /// The text in its colour (ECMA-48, select graphic rendition). It must be plain already.
    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Good => "32",
            Self::Bad => "31",
            Self::Passing => "33",
            Self::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
