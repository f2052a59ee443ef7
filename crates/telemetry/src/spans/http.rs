use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tracing::{info, warn};

/// The most of a collector's answer that is read.
const LONGEST_ANSWER: u64 = 64 << 10;

/// HTTP without TLS for the thread that sends spans: one connection a request, blocking.
///
/// In the place of a general client, whose fifty further crates would all be for this one request
/// every second.
#[derive(Debug)]
pub(crate) struct PlainHttp {
    address: String,
    patience: Duration,
    is_in_trouble: AtomicBool,
}

impl PlainHttp {
    /// A client for a URL's host; none if it is not plain HTTP.
    pub(crate) fn to(url: &str, patience: Duration) -> Option<Self> {
        let request = Request::get(url).body(()).ok()?;
        let uri = request.uri();
        let host = uri.host().filter(|host| !host.is_empty())?;
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let is_plain = uri.scheme_str() == Some("http");
        is_plain.then_some(Self { address, patience, is_in_trouble: AtomicBool::new(false) })
    }

    fn send(&self, request: &Request<Bytes>) -> io::Result<Response<Bytes>> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        stream.write_all(&self.head(request))?;
        stream.write_all(request.body())?;
        let mut answer = Vec::new();
        let outcome = stream.take(LONGEST_ANSWER).read_to_end(&mut answer);
        // Some close without ceremony once they have answered.
        status(&answer).ok_or_else(|| outcome.err().unwrap_or(io::ErrorKind::InvalidData.into()))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.patience) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn head(&self, request: &Request<Bytes>) -> Vec<u8> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let mut head =
            format!("{} {path} HTTP/1.1\r\nhost: {}\r\n", request.method(), self.address);
        head.push_str("connection: close\r\n");
        head.push_str(&format!("content-length: {}\r\n", request.body().len()));
        let mut head = head.into_bytes();
        for (name, value) in request.headers() {
            head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        head
    }

    /// Logs once that the collector does not take spans, and once that it does again.
    fn note(&self, trouble: Option<String>) {
        let was_in_trouble = self.is_in_trouble.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(why) if !was_in_trouble => {
                warn!(collector = self.address, why, "spans cannot be sent; they are left out");
            }
            None if was_in_trouble => info!(collector = self.address, "spans are sent again"),
            _ => {}
        }
    }
}

/// The answer, of which only the status is of interest.
fn status(answer: &[u8]) -> Option<Response<Bytes>> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let status: u16 = str::from_utf8(line).ok()?.split(' ').nth(1)?.parse().ok()?;
    Response::builder().status(status).body(Bytes::new()).ok()
}

#[async_trait]
impl HttpClient for PlainHttp {
    /// Blocks, which is what the thread that awaits it is for.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let outcome = self.send(&request);
        self.note(match &outcome {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(error) => Some(error.to_string()),
        });
        Ok(outcome?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_is_spoken() {
        for (url, expected) in [
            ("http://localhost:4318/v1/traces", Some("localhost:4318")),
            ("http://[::1]:4318", Some("[::1]:4318")),
            ("http://collector/v1/traces", Some("collector:80")),
            ("https://collector/v1/traces", None),
            ("collector:4318", None),
            ("/v1/traces", None),
            ("", None),
        ] {
            let client = PlainHttp::to(url, Duration::ZERO);
            assert_eq!(client.map(|client| client.address).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn the_status_is_read_whatever_follows() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Some(200)),
            ("HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\r\nbody", Some(503)),
            ("HTTP/1.1 nonsense", None),
            ("", None),
        ] {
            let found = status(answer.as_bytes()).map(|response| response.status().as_u16());
            assert_eq!(found, expected, "{answer:?}");
        }
    }
}
