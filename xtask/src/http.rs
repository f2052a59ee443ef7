//! Just enough HTTP/1.1 to ask a server on this machine and to know where its reply ends.
//!
//! Not here: anything a measured server does not send, such as trailers worth reading, upgrades
//! or informational replies.

use std::{fmt, net::SocketAddr, net::ToSocketAddrs};

use anyhow::{Context, bail};

/// The longest head that is read; every measured server stays far below it.
const MAX_HEAD: usize = 64 * 1024;

/// Where to send requests: `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// The resolved address.
    pub(crate) address: SocketAddr,
    authority: String,
    path: String,
}

impl Target {
    /// Reads and resolves a URL.
    pub(crate) fn parse(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("`{url}` does not start with `http://`");
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let has_port = authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
        let resolvable = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let address = resolvable
            .to_socket_addrs()
            .with_context(|| format!("resolve `{authority}`"))?
            .next()
            .with_context(|| format!("`{authority}` has no address"))?;
        Ok(Self { address, authority: authority.to_owned(), path: path.to_owned() })
    }

    /// The bytes of a `GET` for this target. A header is `name: value`.
    pub(crate) fn request(&self, headers: &[String]) -> Vec<u8> {
        let mut request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n", self.path, self.authority);
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.into_bytes()
    }
}

/// What is known about a complete reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    /// The status code.
    pub(crate) status: u16,
    /// The number of bytes from the status line to the end of the body.
    pub(crate) size: usize,
    /// Whether the connection may carry another request.
    pub(crate) keeps_alive: bool,
    head: usize,
    framing: Framing,
}

impl Reply {
    /// The value of a header, its name in lower case.
    pub(crate) fn header<'a>(&self, received: &'a [u8], name: &str) -> Option<&'a str> {
        let head = str::from_utf8(&received[..self.head]).ok()?;
        let pairs = head.split("\r\n").filter_map(|line| line.split_once(':'));
        pairs.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    }

    /// The body, without its transfer encoding. `received` is what the reply was found in.
    pub(crate) fn body(&self, received: &[u8]) -> Vec<u8> {
        let framed = &received[self.head..self.size];
        match self.framing {
            Framing::Length(_) | Framing::UntilClosed => framed.to_vec(),
            Framing::Chunked => {
                let mut body = Vec::new();
                // What `find` has walked through once holds no mistake.
                let _ = walk_chunks(framed, |chunk| body.extend_from_slice(chunk));
                body
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClosed,
}

/// Why bytes are not an HTTP/1.1 reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "not an HTTP reply: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Looks for a whole reply at the start of `received`; `None` means that more has to come.
///
/// `is_closed` says that nothing more will come, which ends a reply without a stated length.
pub(crate) fn find(received: &[u8], is_closed: bool) -> Result<Option<Reply>, Malformed> {
    let Some(head) = received.windows(4).position(|end| end == b"\r\n\r\n") else {
        return if received.len() > MAX_HEAD { Err(Malformed("endless head")) } else { Ok(None) };
    };
    let (status, framing, keeps_alive) = read_head(&received[..head])?;
    let head = head + 4;
    let after = &received[head..];
    let body = match framing {
        Framing::Length(length) => (after.len() >= length).then_some(length),
        Framing::Chunked => walk_chunks(after, |_| ())?,
        Framing::UntilClosed => is_closed.then_some(after.len()),
    };
    Ok(body.map(|body| Reply { status, size: head + body, keeps_alive, head, framing }))
}

fn read_head(head: &[u8]) -> Result<(u16, Framing, bool), Malformed> {
    let head = str::from_utf8(head).map_err(|_| Malformed("head is not text"))?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or(Malformed("status line"))?;

    let mut framing = match status {
        100..=199 | 204 | 304 => Framing::Length(0),
        _ => Framing::UntilClosed,
    };
    let mut keeps_alive = true;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Malformed("header without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") && framing == Framing::UntilClosed {
            framing = Framing::Length(value.parse().map_err(|_| Malformed("content-length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            keeps_alive = !value.eq_ignore_ascii_case("close");
        }
    }
    Ok((status, framing, keeps_alive && framing != Framing::UntilClosed))
}

/// Passes each chunk to `each` and returns the size of the whole encoded body, if it is all there.
fn walk_chunks(encoded: &[u8], mut each: impl FnMut(&[u8])) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    loop {
        let Some((line, after_line)) = next_line(encoded, at) else { return Ok(None) };
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| Malformed("chunk size"))?;
        if size == 0 {
            return Ok(end_of_trailers(encoded, after_line));
        }
        let end = after_line.checked_add(size).ok_or(Malformed("chunk size"))?;
        let Some(chunk) = encoded.get(after_line..end) else { return Ok(None) };
        match encoded.get(end..end + 2) {
            None => return Ok(None),
            Some(b"\r\n") => each(chunk),
            Some(_) => return Err(Malformed("chunk end")),
        }
        at = end + 2;
    }
}

fn end_of_trailers(encoded: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let (line, next) = next_line(encoded, at)?;
        if line.is_empty() {
            return Some(next);
        }
        at = next;
    }
}

/// The text from `at` to the next line break, and where the line after it starts.
fn next_line(bytes: &[u8], at: usize) -> Option<(&str, usize)> {
    let rest = bytes.get(at..)?;
    let length = rest.windows(2).position(|pair| pair == b"\r\n")?;
    // Anything but text is no chunk size, so an empty line in its place is refused as well.
    let line = str::from_utf8(&rest[..length]).unwrap_or("?");
    Some((line, at + length + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHello\r\n7;x=1\r\n, World\r\n0\r\nt: 1\r\n\r\n";

    #[test]
    fn a_reply_ends_where_its_framing_says() {
        for (received, is_closed, status, size, keeps_alive) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi+"[..], false, 200, 40, true),
            (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", false, 200, 37, true),
            (
                b"HTTP/1.1 500\r\nConnection: close\r\ncontent-length: 0\r\n\r\n",
                false,
                500,
                54,
                false,
            ),
            (b"HTTP/1.1 204 No Content\r\n\r\n", false, 204, 27, true),
            (b"HTTP/1.1 200 OK\r\n\r\nall", true, 200, 22, false),
            (CHUNKED, false, 200, CHUNKED.len(), true),
        ] {
            let reply = find(received, is_closed).expect("well formed").expect("complete");
            assert_eq!(
                (reply.status, reply.size, reply.keeps_alive),
                (status, size, keeps_alive),
                "{}",
                String::from_utf8_lossy(received)
            );
        }
    }

    #[test]
    fn every_strict_prefix_is_incomplete() {
        let with_length = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        for whole in [&with_length[..], CHUNKED] {
            for end in 0..whole.len() {
                assert_eq!(find(&whole[..end], false), Ok(None), "{end} of {}", whole.len());
            }
        }
    }

    #[test]
    fn the_body_comes_without_its_encoding() {
        let reply = find(CHUNKED, false).expect("well formed").expect("complete");
        assert_eq!(reply.body(CHUNKED), b"Hello, World");
    }

    #[test]
    fn what_is_not_http_is_refused() {
        for received in [
            &b"SSH-2.0\r\n\r\n"[..],
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            b"HTTP/1.1 200 \xff\r\n\r\n",
        ] {
            assert!(find(received, false).is_err(), "{}", String::from_utf8_lossy(received));
        }
        assert!(find(&vec![b'a'; MAX_HEAD + 1], false).is_err(), "a head without an end");
    }

    #[test]
    fn a_target_is_an_address_and_a_request() {
        let target = Target::parse("http://127.0.0.1:8080/a?b=1").expect("valid");
        assert_eq!(target.address, "127.0.0.1:8080".parse().expect("address"));
        assert_eq!(
            target.request(&["x-a: b".to_owned()]),
            b"GET /a?b=1 HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nx-a: b\r\n\r\n"
        );
        assert_eq!(Target::parse("http://127.0.0.1").expect("valid").address.port(), 80);
        assert!(Target::parse("https://127.0.0.1/").is_err());
    }
}
