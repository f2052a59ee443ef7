//! The load generator: keep-alive HTTP/1.1 over a few connections, from one thread.
//!
//! It shares its processors with the server it measures, so it does as little as it can: one epoll,
//! non-blocking sockets, one write and one read per call, no allocation on the way. It blocks its
//! thread and never spins.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::Context;
use rustix::{
    event::epoll,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    affinity::Pinned,
    http,
    latency::Latencies,
    schedule::{Pace, Schedule},
};

/// How long replies may still come once the run's time is over.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(2);
/// The epoll token of the timer; connections have their index.
const TIMER: u64 = u64::MAX;

/// One run against one server.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The server.
    pub(crate) address: SocketAddr,
    /// The bytes of the requests: one after the other, and then again from the first.
    pub(crate) requests: Vec<Vec<u8>>,
    /// How many connections are open, with at most one request in flight on each.
    pub(crate) connections: usize,
    /// How long requests are sent.
    pub(crate) duration: Duration,
    /// What decides when they are sent.
    pub(crate) pace: Pace,
    /// The processor the generator stays on.
    pub(crate) core: Option<usize>,
}

/// What a run saw.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The time to each reply with status 200: from the first byte sent in a closed loop, from the
    /// time it was due in an open one.
    pub(crate) latencies: Latencies,
    /// What was not such a reply.
    pub(crate) failures: Failures,
    /// From the first request to the last reply; at least the planned duration, unless the plan was
    /// a number of requests.
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// Good replies a second.
    pub(crate) fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "runs have fewer than 2^52 replies")]
        let count = self.latencies.count() as f64;
        count / self.elapsed.as_secs_f64()
    }
}

/// Requests that did not get a good reply, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Failures {
    /// The status was not 200.
    pub(crate) status: u32,
    /// The connection broke or ended in the middle.
    pub(crate) connection: u32,
    /// What came was not HTTP.
    pub(crate) malformed: u32,
    /// Nothing came until the run was over, or the request could not even leave.
    pub(crate) unanswered: u32,
}

impl Failures {
    /// All of them.
    pub(crate) fn total(&self) -> u32 {
        self.status + self.connection + self.malformed + self.unanswered
    }
}

/// Runs a plan on the calling thread.
///
/// Fails if the server cannot be reached, be it at the start or after a connection broke; anything
/// else that goes wrong is counted in the outcome.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    let _pinned = plan.core.map(Pinned::to).transpose()?;
    Generator::connect(plan)?.drive()
}

struct Generator<'a> {
    plan: &'a Plan,
    schedule: Schedule,
    /// How many requests have been sent.
    sent: usize,
    poller: Poller,
    connections: Vec<Connection>,
    /// Connections without a request in flight.
    free: Vec<usize>,
    latencies: Latencies,
    failures: Failures,
    last_reply: Instant,
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// Since when the request in flight was due.
    due: Option<Instant>,
}

/// What reading a connection led to.
enum Event {
    Waiting,
    Reply(http::Reply),
    Malformed,
    Closed,
}

impl<'a> Generator<'a> {
    fn connect(plan: &'a Plan) -> anyhow::Result<Self> {
        anyhow::ensure!(!plan.requests.is_empty(), "there is no request to send");
        let poller = Poller::new().context("set up epoll")?;
        let mut connections = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections {
            connections.push(Connection::open(plan.address, &poller, index)?);
        }
        let start = Instant::now();
        Ok(Self {
            plan,
            schedule: Schedule::new(start, plan.duration, plan.pace),
            sent: 0,
            poller,
            connections,
            free: (0..plan.connections).rev().collect(),
            latencies: Latencies::new(),
            failures: Failures::default(),
            last_reply: start,
        })
    }

    fn drive(mut self) -> anyhow::Result<Outcome> {
        let start = self.last_reply;
        let give_up = self.schedule.end + DRAIN;
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        loop {
            self.send_due()?;
            let now = Instant::now();
            let next = self.schedule.next(now);
            let is_idle = self.free.len() == self.connections.len();
            if now >= give_up || (next.is_none() && is_idle) {
                break;
            }
            let wake = next.filter(|_| !self.free.is_empty()).unwrap_or(give_up);
            self.poller.wait(now, wake, &mut events).context("wait for replies")?;
            for event in events.drain(..) {
                // The timer wakes the loop and has done its work with that.
                if let Ok(index) = usize::try_from(event.data.u64())
                    && index < self.connections.len()
                {
                    self.receive(index)?;
                }
            }
        }
        let in_flight = self.connections.iter().filter(|one| one.due.is_some()).count();
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        self.failures.unanswered += in_flight.saturating_add(self.schedule.overdue());
        let elapsed = match self.plan.pace {
            Pace::AtOnce { .. } => self.last_reply - start,
            Pace::Closed | Pace::Open { .. } => self.last_reply.max(self.schedule.end) - start,
        };
        Ok(Outcome { latencies: self.latencies, failures: self.failures, elapsed })
    }

    fn send_due(&mut self) -> anyhow::Result<()> {
        while let Some(&index) = self.free.last() {
            let Some(due) = self.schedule.take(Instant::now()) else { break };
            self.free.pop();
            self.connections[index].due = Some(due);
            // A request is far smaller than an empty socket buffer: a short write is a fault.
            let request = &self.plan.requests[self.sent % self.plan.requests.len()];
            self.sent = self.sent.wrapping_add(1);
            let sent = self.connections[index].stream.write(request);
            if !sent.is_ok_and(|count| count == request.len()) {
                self.failures.connection += 1;
                self.reopen(index)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        match connection.read() {
            Event::Waiting => {}
            Event::Reply(reply) => {
                self.last_reply = Instant::now();
                // A reply nobody asked for says that the one before it was not understood.
                let Some(due) = connection.due.take() else {
                    self.failures.malformed += 1;
                    return self.reopen(index);
                };
                connection.received.drain(..reply.size);
                if reply.status == 200 {
                    self.latencies.record(self.last_reply - due);
                } else {
                    self.failures.status += 1;
                }
                if !reply.keeps_alive {
                    return self.reopen(index);
                }
                self.free.push(index);
            }
            Event::Malformed => {
                self.failures.malformed += 1;
                self.reopen(index)?;
            }
            Event::Closed => {
                // A server may close a connection that has nothing to do.
                self.failures.connection += u32::from(connection.due.is_some());
                self.reopen(index)?;
            }
        }
        Ok(())
    }

    /// Replaces a connection, without a request in flight.
    fn reopen(&mut self, index: usize) -> anyhow::Result<()> {
        self.connections[index] = Connection::open(self.plan.address, &self.poller, index)
            .context("open a connection again")?;
        if !self.free.contains(&index) {
            self.free.push(index);
        }
        Ok(())
    }
}

impl Connection {
    fn open(address: SocketAddr, poller: &Poller, index: usize) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT)
            .with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        stream.set_nonblocking(true).context("make the socket non-blocking")?;
        let token = u64::try_from(index).context("too many connections")?;
        poller.watch(&stream, token).context("watch the connection")?;
        Ok(Self { stream, received: Vec::with_capacity(4096), due: None })
    }

    fn read(&mut self) -> Event {
        let mut buffer = [0; 16 * 1024];
        let is_closed = match self.stream.read(&mut buffer) {
            Ok(0) => true,
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Event::Waiting,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Event::Waiting,
            Err(_) => return Event::Closed,
        };
        match http::find(&self.received, is_closed) {
            Ok(Some(reply)) => Event::Reply(reply),
            Ok(None) if is_closed => Event::Closed,
            Ok(None) => Event::Waiting,
            Err(_) => Event::Malformed,
        }
    }
}

/// Epoll with a timer of its own, because epoll's time-out counts in milliseconds.
struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: Option<Instant>,
}

impl Poller {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Self { epoll, timer, armed: None })
    }

    fn watch(&self, stream: &TcpStream, token: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN;
        Ok(epoll::add(&self.epoll, stream, epoll::EventData::new_u64(token), flags)?)
    }

    /// Waits until a connection can be read, or until `wake`.
    fn wait(
        &mut self,
        now: Instant,
        wake: Instant,
        events: &mut Vec<epoll::Event>,
    ) -> io::Result<()> {
        if self.armed != Some(wake) {
            self.arm(wake - now)?;
            self.armed = Some(wake);
        }
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Setting the timer also forgets that it fired, so it never has to be read.
    fn arm(&self, after: Duration) -> io::Result<()> {
        // A value of zero would switch the timer off.
        let after = after.max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(after).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
