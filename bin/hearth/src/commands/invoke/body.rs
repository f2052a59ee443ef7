use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::exit::{Failure, Fatal};

/// What a call may carry (docs/protocols/worker.md).
const MOST: u64 = 20 << 20;

/// Where a call's body comes from.
#[derive(clap::Args)]
pub(crate) struct BodyArguments {
    /// The body; `-` is standard input.
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    data: Option<String>,
    /// The file that is the body; `-` is standard input.
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
}

impl BodyArguments {
    /// The body, if there is one. Standard input is read only by who asks for it: it may be a pipe
    /// that stays open, or the rest of what `while read` goes through.
    pub(crate) fn read(self) -> anyhow::Result<Option<Vec<u8>>> {
        match (self.data, self.file) {
            (Some(data), _) if data == "-" => limited(io::stdin()).map(Some),
            (Some(data), _) => Ok(Some(data.into_bytes())),
            (None, Some(path)) if path == Path::new("-") => limited(io::stdin()).map(Some),
            (None, Some(path)) => {
                let file = File::open(&path).map_err(|error| {
                    Fatal::new(Failure::NoInput, format!("{}: {error}", path.display()))
                })?;
                limited(file).map(Some)
            }
            (None, None) => Ok(None),
        }
    }
}

fn limited(reader: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    reader.take(MOST + 1).read_to_end(&mut body).context("could not read the body")?;
    if body.len() as u64 > MOST {
        let message = "the body is larger than the 20 MiB that a call may carry";
        return Err(Fatal::new(Failure::Usage, message).into());
    }
    Ok(body)
}

/// What a body is, for the header that says so.
pub(crate) fn kind(body: &[u8]) -> &'static str {
    let is_json = matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
        && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    match std::str::from_utf8(body) {
        Ok(_) if is_json => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_what_it_is() {
        for (body, expected) in [
            (&b" {\"a\": 1}\n"[..], "application/json"),
            (b"[1]", "application/json"),
            (b"{a: 1}", "text/plain; charset=utf-8"),
            (b"1", "text/plain; charset=utf-8"),
            (b"", "text/plain; charset=utf-8"),
            (b"\xff", "application/octet-stream"),
        ] {
            assert_eq!(kind(body), expected, "{body:?}");
        }
    }

    #[test]
    fn a_body_has_a_limit() {
        limited(io::repeat(0).take(MOST)).expect("as much as a call may carry");
        limited(io::repeat(0)).expect_err("endless");
    }
}
