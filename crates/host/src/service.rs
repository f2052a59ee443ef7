//! The path of a request, in the order of the specification (1.5).

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use edge::{
    Bodies, BodyLimits, Client, Gone, MAX_HEAD, PaceLimits, PoolLimits, ReplyBody, Sender, Unread,
    head_size,
};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue, RETRY_AFTER},
};
use model::LogId;
use protocol::{Body, Call, CallError, CallLog, LogStream, Reply};
use tokio::time::Instant;

use crate::{
    control::{self, EnforcedHeaders, LOG_ID, Secret},
    log::{LogIds, Logs},
    reply, request,
};

/// The most bytes of a request's body (specification, 1.5).
pub const MAX_BODY: usize = 20 << 20;

/// The longest timeout: beyond it, clocks overflow.
const LONGEST_CALL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What is behind the server.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Delivers one call to the function.
    async fn call(&self, call: Call) -> Result<Reply, CallError>;
}

/// What the server must know about its function.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// What callers must know.
    pub secret: Secret,
    /// Headers that replace the client's.
    pub enforced: EnforcedHeaders,
    /// In development all calls share the log id `dev`.
    pub is_development: bool,
    /// Where logs go.
    pub logs: Logs,
    /// The file that `/__opr/timings` shows.
    pub telemetry: Option<PathBuf>,
    /// How long a client may pause within a body.
    pub body_timeout: Duration,
    /// How long a call goes on whose client has closed its sending side.
    pub half_closed_grace: Duration,
}

/// Answers requests.
pub(crate) struct Service {
    config: HostConfig,
    backend: Arc<dyn Backend>,
    bodies: Bodies,
    log_ids: LogIds,
}

/// What a caller asked for with control headers.
struct Control {
    deadline: Option<Instant>,
    log_id: Option<LogId>,
}

type HttpResponse = Response<ReplyBody>;

impl Service {
    pub(crate) fn new(config: HostConfig, backend: Arc<dyn Backend>) -> Self {
        // There is one function, which has all the memory to itself.
        let memory = PoolLimits::default();
        let limits = BodyLimits {
            size: MAX_BODY,
            memory: PoolLimits { per_function: memory.total, ..memory },
            pace: PaceLimits { pause: config.body_timeout, ..PaceLimits::default() },
        };
        let bodies = Bodies::new(limits);
        Self { config, backend, bodies, log_ids: LogIds::new() }
    }

    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        client: &Arc<Client>,
    ) -> HttpResponse {
        if client.is_late() {
            let why = "Stopping: calls that run are finished, new ones are not taken.";
            let mut response = reply::text(StatusCode::SERVICE_UNAVAILABLE, why);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
        match request.uri().path() {
            "/__opr/health" => return reply::text(StatusCode::OK, "OK"),
            "/__opr/timings" => return self.timings(),
            _ => {}
        }
        match self.control(&request) {
            Ok(control) => self.answer_admitted(request, control, client).await,
            Err(refusal) => *refusal,
        }
    }

    /// No telemetry file yet is no telemetry yet.
    fn timings(&self) -> HttpResponse {
        let text = self.config.telemetry.as_ref().map(std::fs::read).transpose();
        match text {
            Ok(text) => reply::text(StatusCode::OK, text.unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                reply::text(StatusCode::OK, "")
            }
            Err(error) => {
                let why = format!("The telemetry file cannot be read: {error}.");
                reply::text(StatusCode::INTERNAL_SERVER_ERROR, why)
            }
        }
    }

    /// Checks what a caller must get right, before any log file exists.
    fn control(&self, request: &Request<Incoming>) -> Result<Control, Box<HttpResponse>> {
        let headers = request.headers();
        let refuse = |status, text: String| Box::new(reply::text(status, text));
        if head_size(request) > MAX_HEAD {
            let why = "Request target and headers are larger than the limit of 64 KiB.".into();
            return Err(refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, why));
        }
        let allowed = control::timeout(headers).map_err(|_| {
            let text =
                format!("Header \"{}\" must be an integer greater than 0.", control::TIMEOUT);
            refuse(StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
        if !self.config.secret.admits(headers.get(control::SECRET)) {
            let text = format!("Unauthorized. Provide correct \"{}\" header.", control::SECRET);
            return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, text));
        }
        let chosen =
            control::log_id(headers).map_err(|why| refuse(StatusCode::BAD_REQUEST, why))?;
        let log_id = control::wants_log(headers).then(|| chosen.unwrap_or_else(|| self.log_id()));
        let deadline = allowed.map(|allowed| Instant::now() + allowed.min(LONGEST_CALL));
        Ok(Control { deadline, log_id })
    }

    fn log_id(&self) -> LogId {
        if self.config.is_development {
            return "dev".parse().expect("three letters");
        }
        self.log_ids.next()
    }

    async fn answer_admitted(
        &self,
        request: Request<Incoming>,
        Control { deadline, log_id }: Control,
        client: &Arc<Client>,
    ) -> HttpResponse {
        let log = log_id.as_ref().map(|id| self.config.logs.open(id));
        let (parts, body) = request.into_parts();
        let sender = Sender { client: client.address().ip(), function: "" };
        let mut response = match self.bodies.read(body, &sender).await {
            Ok(body) => {
                let head = Arc::new(request::call_head(&parts, &self.config.enforced));
                let body = Body::whole(body);
                let call = Call { head, body, deadline, log: log.clone() };
                self.deliver(call, log, client).await
            }
            Err(unread) => refuse_body(unread, log.as_deref()),
        };
        let id = log_id.as_ref().map_or("", LogId::as_str);
        let id = HeaderValue::from_str(id).expect("log ids are plain ASCII");
        response.headers_mut().insert(LOG_ID, id);
        response
    }

    async fn deliver(
        &self,
        call: Call,
        log: Option<Arc<dyn CallLog>>,
        client: &Arc<Client>,
    ) -> HttpResponse {
        let grace = self.config.half_closed_grace;
        let outcome = tokio::select! {
            biased;
            outcome = self.backend.call(call) => outcome,
            // Nobody will read the answer; dropping the call cancels it.
            () = client.gone(grace) => {
                let mut response = reply::empty(StatusCode::REQUEST_TIMEOUT);
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                return response;
            }
        };
        match outcome {
            Ok(reply) => {
                let gone = || -> Gone {
                    let client = client.clone();
                    Box::pin(async move { client.gone(grace).await })
                };
                reply::response(reply, log, gone)
            }
            Err(error) => failure(&error, log.as_deref()),
        }
    }
}

fn refuse_body(unread: Unread, log: Option<&dyn CallLog>) -> HttpResponse {
    let (status, why) = match unread {
        Unread::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, "Request body is larger than the limit of 20 MiB.")
        }
        Unread::NoRoom => {
            (StatusCode::SERVICE_UNAVAILABLE, "Other request bodies take all the memory for them.")
        }
        Unread::TooSlow => (StatusCode::REQUEST_TIMEOUT, "Request body did not arrive in time."),
        Unread::Broken => (StatusCode::BAD_REQUEST, "Request body broke off."),
    };
    if let Some(log) = log {
        log.write(LogStream::Error, why);
    }
    reply::text(status, why)
}

/// The specification's failure table (1.6): the function's failures have no body, ours say why.
fn failure(error: &CallError, log: Option<&dyn CallLog>) -> HttpResponse {
    let text = error.to_string();
    if let Some(log) = log {
        log.write(LogStream::Error, &text);
    }
    match error {
        CallError::Failed { .. } | CallError::TimedOut => {
            reply::empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
        CallError::NotLoaded { .. } => reply::empty(StatusCode::SERVICE_UNAVAILABLE),
        CallError::Lost { .. } | CallError::Unavailable { .. } => {
            reply::text(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}
