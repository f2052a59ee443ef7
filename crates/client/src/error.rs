use std::{error::Error, fmt};

use model::FunctionName;

/// Why a request to a daemon failed. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be one of a daemon.
    #[error("`{url}` is not the URL of a daemon; write it like http://127.0.0.1:8080")]
    Url {
        /// What was given.
        url: String,
    },
    /// Text that cannot be a token.
    #[error("a token is one word of visible characters")]
    NoToken,
    /// A function's path that no request can carry as it is.
    #[error(
        "the path `{path}` must begin with `/` and have no white space, `#`, `.` or `..` parts"
    )]
    Path {
        /// What was given.
        path: String,
    },
    /// Nobody listens.
    #[error(
        "no daemon at {url} ({reason}): start one with `hearth up`, or set HEARTH_URL to where it is"
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the system says.
        reason: String,
    },
    /// The data directory is another user's.
    #[error(
        "{directory} is another user's data directory: run this as that user, or set HEARTH_URL and \
         HEARTH_TOKEN"
    )]
    OthersDirectory {
        /// The directory.
        directory: String,
    },
    /// The daemon speaks no TLS.
    #[error(
        "the daemon at {url} speaks http, not https: write `http://…`, or reach it through a proxy that speaks TLS"
    )]
    NoTls {
        /// Where it is.
        url: String,
    },
    /// Somebody listens at the daemon's socket who cannot be the daemon.
    #[error(
        "{socket} is held by the user {listener}, and its directory belongs to {owner}: this is not \
         the daemon, so it was told nothing"
    )]
    Stranger {
        /// The socket.
        socket: String,
        /// Who listens there.
        listener: u32,
        /// Whose the directory is.
        owner: u32,
    },
    /// Others than its owner could put anything into the daemon's directory.
    #[error(
        "others may write to the data directory {directory} (mode {mode:04o}), so its socket could \
         be anybody's: `chmod 700 {directory}`"
    )]
    OpenDirectory {
        /// The directory.
        directory: String,
        /// Its mode.
        mode: u32,
    },
    /// Somebody listens and says nothing.
    #[error("the daemon at {url} did not answer in time; is it overloaded or stopped?")]
    Silent {
        /// Where it is.
        url: String,
    },
    /// The token is wrong, or missing.
    #[error(
        "the daemon at {url} {}: set HEARTH_TOKEN to what the file `token` in its data directory says",
        if *is_given { "does not accept this token" } else { "wants a token" }
    )]
    Token {
        /// Where the daemon is.
        url: String,
        /// Whether one was sent.
        is_given: bool,
    },
    /// There is no such function.
    #[error("no function `{name}`{}", Similar(similar))]
    UnknownFunction {
        /// What was asked for.
        name: FunctionName,
        /// Functions that exist and are called similarly.
        similar: Vec<String>,
    },
    /// The daemon refused, and says why.
    #[error("{message}")]
    Refused {
        /// The answer's status.
        status: u16,
        /// For programs, such as `invalid-settings`.
        code: String,
        /// For people.
        message: String,
    },
    /// Something else answers there.
    #[error("what answers at {url} with status {status} is no Hearth daemon; check HEARTH_URL")]
    NotHearth {
        /// Where it is.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// An answer that this version does not understand.
    #[error("the daemon's answer makes no sense; compare `hearth --version` there and here")]
    Malformed(#[from] serde_json::Error),
    /// An answer, or a line of it, that is too large.
    #[error("the daemon's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The connection ended in the middle.
    #[error("the connection to the daemon broke ({reason})")]
    Broken {
        /// What the system says.
        reason: String,
    },
    /// There is no way to make connections on this machine.
    #[error("could not prepare connections ({reason})")]
    Setup {
        /// What the system says.
        reason: String,
    },
}

impl ClientError {
    pub(crate) fn of_request(error: &reqwest::Error, url: &str) -> Self {
        let (url, reason) = (url.to_owned(), reason(error));
        match error {
            error if is_no_tls(error) => Self::NoTls { url },
            error if error.is_connect() => Self::Unreachable { url, reason },
            error if error.is_timeout() => Self::Silent { url },
            _ => Self::Broken { reason },
        }
    }

    pub(crate) fn of_body(error: &reqwest::Error) -> Self {
        Self::Broken { reason: reason(error) }
    }
}

/// Whether the other side answered a TLS handshake with something else.
fn is_no_tls(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidMessage(_));
    }
    // What an I/O error wraps is not among its sources.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    wrapped.is_some_and(|wrapped| is_no_tls(wrapped)) || error.source().is_some_and(is_no_tls)
}

/// The innermost cause: the layers around it say where in a library it was.
pub(crate) fn reason(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

struct Similar<'a>(&'a [String]);

impl fmt::Display for Similar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("; `hearth ls` lists all"),
            names => write!(f, "; did you mean `{}`?", names.join("`, `")),
        }
    }
}
