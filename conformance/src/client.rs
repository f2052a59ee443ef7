//! HTTP/1.1 as bytes: sends whatever it is told to, and reads replies strictly.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, bail, ensure};

/// How long anything that a test waits for may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The header that names what the fixture function should do.
pub const ACTION: &str = "x-action";
/// The header that names a gate.
pub const GATE: &str = "x-gate";

/// A well-formed request.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), headers: vec![], body: vec![] }
    }

    /// Asks the fixture function for one of its actions.
    pub fn action(name: &str) -> Self {
        Self::new("GET", "/").header(ACTION, name)
    }

    /// Asks the fixture function to go through steps.
    pub fn script(steps: &serde_json::Value) -> Self {
        Self::new("POST", "/").header(ACTION, "script").body(steps.to_string())
    }

    /// Asks for an action that has to do with a gate.
    pub fn at_gate(action: &str, gate: &str) -> Self {
        Self::action(action).header(GATE, gate)
    }

    /// Adds a header, also beside others of its name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body. Its length is announced unless a header already says something about it.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The request as it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        let has = |name: &str| self.headers.iter().any(|(other, _)| other == name);
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !has("host") {
            head.push_str("host: function.test\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() && !has("content-length") && !has("transfer-encoding") {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    fn expects_body(&self) -> bool {
        self.method != "HEAD"
    }
}

/// What precedes a response's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Names as they came, in order.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let of_name = |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.headers.iter().filter(of_name).map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of a header; none if it is missing or repeated.
    pub fn one(&self, name: &str) -> Option<&str> {
        match self.all(name)[..] {
            [value] => Some(value),
            _ => None,
        }
    }
}

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status and headers.
    pub head: Head,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Response {
    /// The status code.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as text, for comparing.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none, which no expected value is.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The id of the call's log.
    pub fn log_id(&self) -> anyhow::Result<&str> {
        self.head.one("x-open-runtimes-log-id").context("no log id in the reply")
    }
}

/// A connection. Whatever reads fails after [`PATIENCE`].
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Closes the sending side.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.reader.get_ref().shutdown(Shutdown::Write)
    }

    /// Sends a request and reads its response.
    pub fn call(&mut self, request: &Request) -> anyhow::Result<Response> {
        self.send(&request.bytes()).context("could not send")?;
        let head = self.head()?;
        let body = if request.expects_body() { self.body(&head)? } else { vec![] };
        Ok(Response { head, body })
    }

    /// Reads a response to anything but HEAD.
    pub fn response(&mut self) -> anyhow::Result<Response> {
        let head = self.head()?;
        let body = self.body(&head)?;
        Ok(Response { head, body })
    }

    /// Reads what precedes a body.
    pub fn head(&mut self) -> anyhow::Result<Head> {
        let line = self.line().context("no status line")?;
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        let status = status.with_context(|| format!("not a status line: {line:?}"))?.parse()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().context("the head broke off")?;
            if line.is_empty() {
                return Ok(Head { status, headers });
            }
            let (name, value) = line.split_once(':').with_context(|| format!("header {line:?}"))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads a whole body.
    pub fn body(&mut self, head: &Head) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        if head.status < 200 || head.status == 204 || head.status == 304 {
            return Ok(body);
        }
        if head.one("transfer-encoding") == Some("chunked") {
            while let Some(piece) = self.chunk()? {
                body.extend(piece);
            }
            return Ok(body);
        }
        match head.one("content-length") {
            Some(length) => {
                body.resize(length.parse()?, 0);
                self.reader.read_exact(&mut body).context("the body broke off")?;
            }
            None => _ = self.reader.read_to_end(&mut body)?,
        }
        Ok(body)
    }

    /// Reads one chunk of a chunked body; none at its end.
    pub fn chunk(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let line = self.line().context("no chunk")?;
        let size = usize::from_str_radix(&line, 16).with_context(|| format!("size {line:?}"))?;
        let mut chunk = vec![0; size];
        self.reader.read_exact(&mut chunk).context("the chunk broke off")?;
        ensure!(self.line()?.is_empty(), "a chunk is longer than its size");
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    /// Waits until the server closes the connection; fails if it sends anything before.
    pub fn wait_for_close(&mut self) -> anyhow::Result<()> {
        match self.reader.fill_buf() {
            Ok([]) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Ok(rest) => bail!("the server sent {:?}", String::from_utf8_lossy(rest)),
            Err(error) => Err(error).context("the connection stays open"),
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        let line = line.strip_suffix(b"\r\n").context("the connection ended within a line")?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}
