use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use api::{
    DeployEvent, DeployRequest, Function, Instance, LogQuery, Problem, SettingsPatch, Status,
};
use bytes::{Bytes, BytesMut};
use model::{CallEnd, FunctionName, LogEvent, LogLine};
use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE},
    multipart::{Form, Part},
};
use serde::de::DeserializeOwned;
use tokio::{io::AsyncRead, time::timeout};
use tokio_util::io::ReaderStream;

use crate::{
    ClientError, Invocation, Lines, Reply, Token, error::reason, invoke, local::LocalSocket,
    nearest::nearest,
};

/// What requests through a socket are addressed to: every daemon answers to it.
const LOCAL_BASE: &str = "http://127.0.0.1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For answers that the daemon has at hand. Builds and calls take as long as they take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// For a removal: running calls get half a minute to end, those who changed the function before
/// have their turn first, and files are removed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// For what a daemon writes to a log as soon as it knows it.
const LOG_TIMEOUT: Duration = Duration::from_secs(3);
/// Notices a daemon's machine that is gone while nothing is said.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The largest answer that is read whole: all of ten thousand functions.
const MOST: usize = 64 << 20;
/// The code of the problem that a function does not exist.
const UNKNOWN_FUNCTION: &str = "unknown-function";

/// Speaks with one daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at the end.
    base: String,
    /// Where the daemon is, for people: its URL or its socket.
    place: String,
    /// Keeps the way to its socket open.
    _local: Option<Arc<LocalSocket>>,
    token: Option<Token>,
}

/// A packed source folder on its way.
#[derive(Debug)]
pub struct Source<R> {
    /// The archive: a tar, plain or compressed.
    pub archive: R,
    /// Its exact size.
    pub bytes: u64,
}

/// A deployment under way.
#[derive(Debug)]
pub struct Deploying {
    /// What it is called, for who wants to cancel it; none if the daemon does not say.
    pub id: Option<String>,
    /// What becomes of it.
    pub events: Lines<DeployEvent>,
}

impl Deploying {
    fn new(response: Response) -> Self {
        let id = response.headers().get(api::DEPLOYMENT_HEADER);
        let id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
        Self { id, events: Lines::new(response) }
    }
}

impl Client {
    /// Prepares for a daemon's URL; nothing is sent yet. Calls of functions need no token,
    /// everything else does.
    pub fn new(url: &str, token: Option<Token>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Url { url: url.into() };
        let parsed = Url::parse(url).map_err(|_| wrong())?;
        let is_plain = parsed.username().is_empty()
            && parsed.password().is_none()
            && parsed.query().is_none()
            && parsed.fragment().is_none();
        if !matches!(parsed.scheme(), "http" | "https") || !is_plain {
            return Err(wrong());
        }
        let mut builder = builder().tcp_keepalive(KEEPALIVE);
        if parsed.scheme() == "http" {
            // Reading the system's certificates takes longer than most requests, and fails on
            // machines that have none.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&parsed) {
            builder = builder.no_proxy();
        }
        let base: String = parsed.as_str().trim_end_matches('/').into();
        Ok(Self { http: build(builder)?, place: base.clone(), base, token, _local: None })
    }

    /// Prepares for the daemon of this machine that has its data in a directory. It is reached
    /// through a socket there, so nobody but the directory's owner can be at the other end; that is
    /// checked here, and an error says that nobody listens, or somebody else.
    pub fn local(directory: &Path, token: Option<Token>) -> Result<Self, ClientError> {
        let local = LocalSocket::find(directory)?;
        let builder = builder().tls_certs_only([]).no_proxy().unix_socket(local.path());
        let (http, place) = (build(builder)?, local.name().display().to_string());
        Ok(Self { http, base: LOCAL_BASE.into(), place, token, _local: Some(Arc::new(local)) })
    }

    /// Whether the daemon at this URL is one of this machine.
    pub fn is_local(&self) -> bool {
        Url::parse(&self.base).is_ok_and(|url| is_loopback(&url))
    }

    /// The same daemon, with another token.
    pub fn with_token(self, token: Token) -> Self {
        Self { token: Some(token), ..self }
    }

    /// All functions.
    pub async fn functions(&self) -> Result<Vec<Function>, ClientError> {
        self.get("/v1/functions").await
    }

    /// One function.
    pub async fn function(&self, name: &FunctionName) -> Result<Function, ClientError> {
        let answer = self.get(&format!("/v1/functions/{name}")).await;
        self.explain(answer, name).await
    }

    /// Removes a function with everything it had. Returns once nothing of it is left, for which its
    /// calls are waited for. A removal that the daemon has begun is finished also if this is dropped.
    pub async fn remove(&self, name: &FunctionName) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &format!("/v1/functions/{name}"));
        let answer = self.send(request.timeout(REMOVE_TIMEOUT)).await.map(drop);
        self.explain(answer, name).await
    }

    /// Sends a source folder, and tells what becomes of it. If the answer is dropped, the deployment
    /// goes on.
    pub async fn deploy<R: AsyncRead + Send + 'static>(
        &self,
        name: &FunctionName,
        request: &DeployRequest,
        source: Source<R>,
    ) -> Result<Deploying, ClientError> {
        let settings = Part::text(serde_json::to_string(request)?);
        let archive = reqwest::Body::wrap_stream(ReaderStream::new(source.archive));
        let archive = Part::stream_with_length(archive, source.bytes).file_name("source");
        let form = Form::new()
            .part("settings", with_type(settings, "application/json")?)
            .part("source", with_type(archive, "application/octet-stream")?);
        let path = format!("/v1/functions/{name}/deployments");
        let response = self.send(self.request(Method::POST, &path).multipart(form)).await?;
        Ok(Deploying::new(response))
    }

    /// Deploys what is deployed with other settings, and tells what becomes of it. If the answer is
    /// dropped, the deployment goes on.
    pub async fn set(
        &self,
        name: &FunctionName,
        patch: &SettingsPatch,
    ) -> Result<Deploying, ClientError> {
        let path = format!("/v1/functions/{name}/settings");
        let request = self.request(Method::PATCH, &path).header(CONTENT_TYPE, "application/json");
        let request = request.body(serde_json::to_string(patch)?);
        let answer = self.send(request).await.map(Deploying::new);
        self.explain(answer, name).await
    }

    /// Tells a deployment that is under way to end. Its last event tells what became of it. False if
    /// it is over already.
    pub async fn cancel_deployment(
        &self,
        name: &FunctionName,
        id: &str,
    ) -> Result<bool, ClientError> {
        let path = format!("/v1/functions/{name}/deployments/{id}");
        match self.send(self.request(Method::DELETE, &path).timeout(ANSWER_TIMEOUT)).await {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lines of a function's log.
    pub async fn logs(
        &self,
        name: &FunctionName,
        query: &LogQuery,
    ) -> Result<Lines<LogLine>, ClientError> {
        let mut url = Url::parse(&format!("{}/v1/functions/{name}/logs", self.base))
            .map_err(|_| ClientError::Url { url: self.base.clone() })?;
        let LogQuery { call, since, limit, follow } = query;
        let pairs = [
            ("call", call.clone()),
            ("since", since.map(|since| since.to_string())),
            ("limit", limit.map(|limit| limit.to_string())),
            ("follow", follow.then(|| "true".to_owned())),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, &value);
            }
        }
        let answer = self.send(self.authorized(self.http.get(url))).await.map(Lines::new);
        self.explain(answer, name).await
    }

    /// How a call of a function ended, by the function's log; none if the daemon does not say so
    /// within three seconds, or to nobody without its token.
    pub async fn end_of_call(&self, name: &FunctionName, call: &str) -> Option<CallEnd> {
        let query = LogQuery { call: Some(call.into()), follow: true, ..LogQuery::default() };
        let reading = async {
            let mut lines = self.logs(name, &query).await.ok()?;
            while let Some(line) = lines.next().await.ok()? {
                if let LogEvent::End(end) = line.event {
                    return Some(end);
                }
            }
            None
        };
        timeout(LOG_TIMEOUT, reading).await.ok().flatten()
    }

    /// What runs.
    pub async fn instances(&self) -> Result<Vec<Instance>, ClientError> {
        self.get("/v1/instances").await
    }

    /// The daemon itself, with the load of each function that was called.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// A backup of everything, as it comes. One that ends without an error is whole.
    pub async fn backup(&self) -> Result<Reply, ClientError> {
        let answer = self.send(self.request(Method::GET, "/v1/backup")).await?;
        Ok(Reply::new(answer, None))
    }

    /// Calls a function. Whatever it replies is a success here, also a status of 500.
    pub async fn invoke(
        &self,
        name: &FunctionName,
        call: Invocation,
    ) -> Result<Reply, ClientError> {
        let url = invoke::url(&format!("{}/fn/{name}", self.base), &call.path)?;
        let mut request = self.http.request(call.method, url).headers(call.headers);
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let sent = request.send().await;
        let mut response = sent.map_err(|error| ClientError::of_request(&error, &self.place))?;
        let has = |name| response.headers().contains_key(name);
        // A daemon that is older than the header of errors has none of calls in its own answers.
        let is_replied = has(api::CALL_HEADER) && !has(api::ERROR_HEADER);
        if response.status() != StatusCode::NOT_FOUND || is_replied {
            return Ok(Reply::new(response, None));
        }
        let body = read(&mut response).await?;
        match problem(&body) {
            Some(error) if error.code == UNKNOWN_FUNCTION => Err(self.unknown(name).await),
            _ => Ok(Reply::new(response, Some(body))),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.request(Method::GET, path).timeout(ANSWER_TIMEOUT);
        let mut response = self.send(request).await?;
        let status = response.status().as_u16();
        let body = read(&mut response).await?;
        match serde_json::from_slice(&body) {
            Err(_) if !matches!(body.first(), Some(b'{' | b'[')) => {
                Err(ClientError::NotHearth { url: self.place.clone(), status })
            }
            parsed => Ok(parsed?),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.authorized(self.http.request(method, format!("{}{path}", self.base)))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.header()),
            None => request,
        }
    }

    /// Sends a request of the API; an answer that is an error becomes one.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let sent = request.send().await;
        let mut response = sent.map_err(|error| ClientError::of_request(&error, &self.place))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(ClientError::Token {
                url: self.place.clone(),
                is_given: self.token.is_some(),
            });
        }
        let body = read(&mut response).await?;
        let status = status.as_u16();
        Err(match problem(&body) {
            Some(error) => {
                ClientError::Refused { status, code: error.code, message: error.message }
            }
            None => ClientError::NotHearth { url: self.place.clone(), status },
        })
    }

    /// Makes a function that does not exist one with suggestions.
    async fn explain<T>(
        &self,
        answer: Result<T, ClientError>,
        name: &FunctionName,
    ) -> Result<T, ClientError> {
        match answer {
            Err(ClientError::Refused { code, .. }) if code == UNKNOWN_FUNCTION => {
                Err(self.unknown(name).await)
            }
            answer => answer,
        }
    }

    async fn unknown(&self, name: &FunctionName) -> ClientError {
        // Without a token there is no list, and no suggestion.
        let functions = self.functions().await.unwrap_or_default();
        let names = functions.into_iter().map(|function| function.name);
        ClientError::UnknownFunction { name: name.clone(), similar: nearest(name.as_str(), names) }
    }
}

fn builder() -> reqwest::ClientBuilder {
    // The only provider in the program (see deny.toml). Somebody may have been quicker.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let none = reqwest::redirect::Policy::none();
    reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).redirect(none)
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, ClientError> {
    builder.build().map_err(|error| ClientError::Setup { reason: reason(&error) })
}

fn with_type(part: Part, kind: &str) -> Result<Part, ClientError> {
    part.mime_str(kind).map_err(|error| ClientError::Setup { reason: reason(&error) })
}

fn problem(body: &[u8]) -> Option<api::ErrorBody> {
    serde_json::from_slice::<Problem>(body).ok().map(|problem| problem.error)
}

async fn read(response: &mut Response) -> Result<Bytes, ClientError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| ClientError::of_body(&error))? {
        if body.len() + chunk.len() > MOST {
            return Err(ClientError::TooLarge { limit: MOST });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_name = host == "localhost" || host.ends_with(".localhost");
    is_name || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
