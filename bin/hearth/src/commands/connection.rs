use std::{fs, path::PathBuf};

use client::{Client, Token};

const DATA_VARIABLE: &str = "HEARTH_DATA";

/// How the daemon is reached.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Where the daemon is.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "HEARTH_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    url: String,
    /// What proves that you may use it [default: for a daemon on this machine, the file `token` in
    /// its data directory].
    #[arg(long, global = true, value_name = "TOKEN", env = "HEARTH_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Where a daemon on this machine keeps its token.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct DataDirectory {
    /// The daemon's data directory [default: ~/.local/share/hearth; for root /var/lib/hearth].
    #[arg(long = "data", value_name = "DIR", env = DATA_VARIABLE, hide_env_values = true)]
    given: Option<PathBuf>,
}

impl DataDirectory {
    /// For a command whose `--data` means something else.
    pub(crate) fn of_environment() -> Self {
        Self { given: std::env::var_os(DATA_VARIABLE).map(PathBuf::from) }
    }

    fn token_file(&self) -> Option<PathBuf> {
        let directory = match &self.given {
            Some(directory) => directory.clone(),
            None if rustix::process::geteuid().is_root() => "/var/lib/hearth".into(),
            None => std::env::home_dir()?.join(".local/share/hearth"),
        };
        Some(directory.join("token"))
    }
}

impl Connection {
    /// A client with whatever token there is; the daemon tells if it is missing.
    pub(crate) fn client(&self, data: &DataDirectory) -> anyhow::Result<Client> {
        if let Some(token) = self.token.as_deref().filter(|token| !token.is_empty()) {
            return Ok(Client::new(&self.url, Some(Token::new(token)?))?);
        }
        let client = Client::new(&self.url, None)?;
        // The file is a local daemon's secret: nobody else gets to see it.
        if let Some(directory) = data.given.as_ref().filter(|_| !client.is_local()) {
            eprintln!(
                "note: no token is read from {}: {} is another machine's; set HEARTH_TOKEN",
                directory.display(),
                self.url
            );
        }
        let text = data.token_file().filter(|_| client.is_local()).map(fs::read_to_string);
        match text.and_then(Result::ok).map(|text| Token::new(&text)) {
            Some(Ok(token)) => Ok(client.with_token(token)),
            _ => Ok(client),
        }
    }
}
