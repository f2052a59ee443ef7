use std::path::{Path, PathBuf};

use client::{Client, Token};
use platform::TokenError;

use crate::{
    exit::{Failure, Fatal},
    paths,
};

const DATA_VARIABLE: &str = "HEARTH_DATA";

/// How the daemon is reached.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Where the daemon is [default: the daemon of this machine that has its data in the data
    /// directory, through a socket there].
    #[arg(long, global = true, value_name = "URL", env = "HEARTH_URL", hide_env_values = true)]
    url: Option<String>,
    /// What proves that you may use it [default: for a daemon on this machine, the file `token` in
    /// its data directory].
    #[arg(long, global = true, value_name = "TOKEN", env = "HEARTH_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Where a daemon on this machine keeps its socket and its token.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct DataDirectory {
    /// The daemon's data directory [default: ~/.local/share/hearth; for root /var/lib/hearth].
    #[arg(
        long = "data",
        value_name = "DIR",
        env = DATA_VARIABLE,
        hide_env_values = true,
        value_parser = paths::absolute()
    )]
    given: Option<PathBuf>,
}

impl DataDirectory {
    /// For a command whose `--data` means something else.
    pub(crate) fn of_environment() -> Self {
        Self { given: std::env::var_os(DATA_VARIABLE).map(PathBuf::from) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.given.clone().unwrap_or_else(paths::default_data)
    }
}

impl Connection {
    /// Whether the daemon is the one that has its data in the data directory.
    pub(crate) fn is_local(&self) -> bool {
        self.url.as_deref().is_none_or(str::is_empty)
    }

    /// A client with whatever token there is; the daemon tells if it is missing.
    pub(crate) fn client(&self, data: &DataDirectory) -> anyhow::Result<Client> {
        let given = self.token.as_deref().filter(|token| !token.is_empty());
        let given = given.map(Token::new).transpose()?;
        let Some(url) = self.url.as_deref().filter(|url| !url.is_empty()) else {
            let directory = data.path();
            let token = given.map_or_else(|| token_in(&directory), |given| Ok(Some(given)))?;
            return Ok(Client::local(&directory, token)?);
        };
        let client = Client::new(url, given.clone())?;
        // Anybody may listen on a port of this machine, so the token in a file is sent there only
        // if somebody says which file; and it is nobody else's to see on another machine.
        match &data.given {
            Some(directory) if given.is_none() && client.is_local() => {
                Ok(match token_in(directory)? {
                    Some(token) => client.with_token(token),
                    None => client,
                })
            }
            Some(directory) if given.is_none() => {
                eprintln!(
                    "note: no token is read from {}: {url} is another machine's; set HEARTH_TOKEN",
                    directory.display()
                );
                Ok(client)
            }
            _ => Ok(client),
        }
    }
}

/// The token of the daemon that has its data in a directory. None if there is no such daemon; one
/// that others can read proves nothing.
fn token_in(directory: &Path) -> anyhow::Result<Option<Token>> {
    let path = directory.join("token");
    match platform::Token::text_of(&path) {
        Ok(text) => Ok(Token::new(&text).ok()),
        Err(TokenError::File { .. }) => Ok(None),
        Err(error) => Err(Fatal::new(Failure::NoPermission, error.to_string()).into()),
    }
}
