//! The path of a request.

use std::{fmt::Write, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use bytes::Bytes;
use edge::{
    Bodies, BodyLimits, Client, Gone, Handler, MAX_HEAD, PaceLimits, Paced, ReplyBody, Sender,
    Unread, head_size,
};
use executor::Progress;
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CONNECTION, HeaderName, HeaderValue},
    http::request::Parts,
};
use model::{CallId, Outcome, Phases};
use protocol::{Body, Call, LogStream, Reply};
use tokio::time::Instant;
use tower_service::Service;
use uuid::Uuid;

use crate::{
    RESERVED,
    authority::{authority, host_name},
    functions::{Callee, Functions, Target},
    head,
    own::OwnNames,
    problem::{self, Problem},
    recording::{DoorBody, Recording},
    route::{Route, route},
};

const CALL: HeaderName = HeaderName::from_static(api::CALL_HEADER);
const TIMING: HeaderName = HeaderName::from_static(api::TIMING_HEADER);
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What is answered also when the server has been told to stop.
const ANSWERED_LATE: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// What the door must know.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Below this domain, each function has a host name; empty: none has.
    pub domain: String,
    /// What clients may take for a body.
    pub body: BodyLimits,
    /// What the daemon is called, for those who administer it.
    pub own_names: OwnNames,
    /// How fast the body of a request must come that the router answers.
    pub upload: PaceLimits,
    /// How long a call goes on whose client has closed its sending side.
    pub half_closed_grace: Duration,
}

impl Default for DoorConfig {
    fn default() -> Self {
        Self {
            domain: "localhost".into(),
            body: BodyLimits::default(),
            own_names: OwnNames::default(),
            // Sources of 512 MiB are uploaded.
            upload: PaceLimits { longest: Duration::from_secs(60 * 60), ..PaceLimits::default() },
            half_closed_grace: Duration::from_secs(5),
        }
    }
}

/// The address of the client, in the extensions of requests that go to the router.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The front door: calls functions, and hands anything else to a router.
pub struct Door {
    domain: String,
    half_closed_grace: Duration,
    bodies: Bodies,
    own_names: OwnNames,
    upload: PaceLimits,
    functions: Arc<dyn Functions>,
    admin: Router,
}

/// A request, and where it goes.
struct Asked<'a> {
    authority: &'a str,
    route: Route<'a>,
}

type HttpResponse = Response<DoorBody>;

impl Handler for Door {
    type Body = DoorBody;

    async fn answer(&self, request: Request<Incoming>, client: &Arc<Client>) -> HttpResponse {
        let id = CallId(Uuid::now_v7());
        let mut response = self.respond(request, client, id).await;
        response.headers_mut().insert(CALL, call_id(id));
        response
    }

    fn refuse_ambiguous(&self) -> HttpResponse {
        let id = CallId(Uuid::now_v7());
        let why = "The request has both content-length and transfer-encoding.";
        let problem = Problem::refused(StatusCode::BAD_REQUEST, why);
        let mut response = problem.response(id).map(DoorBody::own);
        response.headers_mut().insert(CALL, call_id(id));
        response
    }
}

impl Door {
    /// A door to these functions.
    pub fn new(config: DoorConfig, functions: Arc<dyn Functions>, admin: Router) -> Self {
        let DoorConfig { domain, body, own_names, upload, half_closed_grace } = config;
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let bodies = Bodies::new(body);
        Self { domain, half_closed_grace, bodies, own_names, upload, functions, admin }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        client: &Arc<Client>,
        id: CallId,
    ) -> HttpResponse {
        let size = head_size(&request);
        let (parts, body) = request.into_parts();
        let Asked { authority, route } = match self.asked(&parts, size) {
            Ok(asked) => asked,
            Err(problem) => {
                self.bodies.refuse(body);
                let mut response = problem.response(id).map(DoorBody::own);
                // Who cannot be understood may mean something else with what comes next, too.
                close(&mut response);
                return response;
            }
        };
        if client.is_late() && !(route == Route::Admin && ANSWERED_LATE.contains(&parts.uri.path()))
        {
            self.bodies.refuse(body);
            return Problem::stopping().response(id).map(DoorBody::own);
        }
        let called = match route {
            Route::Function(called) => called,
            Route::Admin => {
                if let Err(problem) = self.own_names.check(&parts, authority) {
                    self.bodies.refuse(body);
                    return problem.response(id).map(DoorBody::own);
                }
                let body = Paced::new(body, self.upload);
                let mut request = Request::from_parts(parts, body);
                request.extensions_mut().insert(Peer(client.address()));
                return self.administer(request).await;
            }
        };
        let name = &*called.name;
        match self.functions.find(name).filter(|target| target.name.as_str() == name) {
            Some(target) => {
                let head = head::call_head(&parts, &called, authority, client.address().ip());
                let mut recording = Recording::open(id, &*target.journal, head);
                recording.is_timed = parts.headers.get(TIMING).is_some_and(|value| value == "1");
                self.call(&target, recording, body, client).await
            }
            None => {
                self.bodies.refuse(body);
                Problem::unknown_function(name).response(id).map(DoorBody::own)
            }
        }
    }

    /// Decides where a request goes, before any of its body is read.
    fn asked<'a>(&self, parts: &'a Parts, size: usize) -> Result<Asked<'a>, Problem> {
        if size > MAX_HEAD {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            let why = "The request's target and headers are larger than 64 KiB.";
            return Err(Problem::refused(status, why));
        }
        let authority = authority(parts).map_err(|(status, why)| Problem::refused(status, why))?;
        let host = host_name(authority).unwrap_or("");
        Ok(Asked { authority, route: route(&self.domain, host, parts.uri.path()) })
    }

    async fn administer(&self, request: Request<Paced<Incoming>>) -> HttpResponse {
        match self.admin.clone().call(request).await {
            Ok(response) => response.map(DoorBody::admin),
            Err(never) => match never {},
        }
    }

    async fn call(
        &self,
        target: &Target,
        mut recording: Box<Recording>,
        body: Incoming,
        client: &Arc<Client>,
    ) -> HttpResponse {
        let read = {
            let _receiving = Receiving::begin(&body, &recording.progress);
            let sender = Sender { client: client.address().ip(), function: target.name.as_str() };
            self.bodies.read(body, &sender).await
        };
        match read {
            Ok(body) => {
                let deadline = Instant::now().checked_add(target.timeout);
                self.deliver(&*target.function, recording, body, deadline, client).await
            }
            // Whoever has gone chose so; whoever has only closed its sending side reads this.
            Err(Unread::Broken) if client.has_closed() => {
                Problem::unread(Unread::Broken, self.bodies.limits())
                    .response(recording.id)
                    .map(DoorBody::own)
            }
            Err(unread) => {
                let problem = Problem::unread(unread, self.bodies.limits());
                let why = problem.message.clone();
                failed(&problem, &mut recording, Outcome::Refused, why)
            }
        }
    }

    async fn deliver(
        &self,
        function: &dyn Callee,
        mut recording: Box<Recording>,
        body: Bytes,
        deadline: Option<Instant>,
        client: &Arc<Client>,
    ) -> HttpResponse {
        let grace = self.half_closed_grace;
        let call = Call {
            head: recording.head.clone(),
            body: Body::whole(body),
            deadline,
            log: Some(recording.record().clone().as_log()),
        };
        let outcome = tokio::select! {
            biased;
            outcome = function.call(call, &recording.progress) => outcome,
            // Nobody will read the answer; dropping the call cancels it.
            () = client.gone(grace) => return cancelled(),
        };
        let timing = recording.is_timed.then(|| server_timing(&recording.progress.phases()));
        let mut response = match outcome {
            Ok(reply) => {
                let gone = || -> Gone {
                    let client = client.clone();
                    Box::pin(async move { client.gone(grace).await })
                };
                replied(reply, recording, gone)
            }
            Err(error) => {
                let (problem, outcome) = problem::of_call(&error);
                failed(&problem, &mut recording, outcome, error.to_string())
            }
        };
        if let Some(timing) = timing {
            response.headers_mut().append(SERVER_TIMING, timing);
        }
        response
    }
}

/// A request's body on its way. Dropping it notes how long that took.
struct Receiving<'a>(Option<(Instant, &'a Progress)>);

impl<'a> Receiving<'a> {
    /// Of a body that is empty, nothing is to be noted.
    fn begin(body: &Incoming, progress: &'a Progress) -> Self {
        Self((!body.is_end_stream()).then(|| (Instant::now(), progress)))
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if let Some((begun, progress)) = self.0 {
            progress.note(|phases| phases.receive = begun.elapsed());
        }
    }
}

fn replied(
    reply: Reply,
    mut recording: Box<Recording>,
    gone: impl FnOnce() -> Gone,
) -> HttpResponse {
    let complain = |text: &str| recording.record().write(LogStream::Error, text);
    match edge::response(reply, &RESERVED, complain, gone) {
        Ok(response) => {
            let status = response.status().as_u16();
            response.map(|body| DoorBody::reply(body, status, recording))
        }
        Err(error) => {
            let problem = Problem::invalid(error);
            failed(&problem, &mut recording, Outcome::Failed, error.to_string())
        }
    }
}

/// What went wrong goes to the log, and the problem to the client.
fn failed(
    problem: &Problem,
    recording: &mut Recording,
    outcome: Outcome,
    error: String,
) -> HttpResponse {
    recording.failed(outcome, problem.status.as_u16(), error);
    problem.response(recording.id).map(DoorBody::own)
}

/// For a client that is not there: nothing of this arrives, and the connection ends.
fn cancelled() -> HttpResponse {
    let mut response = Response::new(DoorBody::own(ReplyBody::whole(Bytes::new())));
    *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
    close(&mut response);
    response
}

fn close(response: &mut HttpResponse) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

fn call_id(id: CallId) -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    let text = id.0.as_hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).expect("hexadecimal digits and hyphens")
}

/// Milliseconds in each phase, with three decimals.
fn server_timing(phases: &Phases) -> HeaderValue {
    let mut text = String::with_capacity(96);
    let phases = Phases::NAMES.iter().zip(phases.durations());
    // The client knows how long it took to send the request, and nobody how long the reply takes.
    for (name, duration) in phases.filter(|(name, _)| !["receive", "reply"].contains(*name)) {
        let separator = if text.is_empty() { "" } else { ", " };
        let micros = duration.as_micros();
        let (millis, rest) = (micros / 1000, micros % 1000);
        write!(text, "{separator}{name};dur={millis}.{rest:03}").expect("a string takes all");
    }
    HeaderValue::from_str(&text).expect("names and digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_is_in_milliseconds() {
        let phases = Phases {
            wait: Duration::from_micros(12),
            bind: Duration::from_millis(1500),
            call: Duration::from_nanos(1_002_999),
            ..Phases::default()
        };
        let expected = "wait;dur=0.012, spare;dur=0.000, attach;dur=0.000, bind;dur=1500.000, \
                        call;dur=1.002";
        assert_eq!(server_timing(&phases), expected);
    }
}
