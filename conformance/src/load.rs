//! Calls without end, while something else happens.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    client::{Connection, Request, Response},
    platform::{Platform, request},
};

/// Between two calls of a thread: others need the processors, too.
const PAUSE: Duration = Duration::from_millis(2);

/// Threads that call a function until they are told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Outcomes>>,
}

/// What became of calls.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// How many had each status; 0 is no response at all.
    pub statuses: BTreeMap<u16, usize>,
    /// How many of those with status 200 had each body.
    pub bodies: BTreeMap<String, usize>,
    /// Bodies of those with another status, and why there was no response; a few of them.
    pub reasons: Vec<String>,
}

impl Load {
    /// Calls a function from so many threads, each with a connection of its own.
    pub fn start(platform: &Platform, name: &str, target: &str, threads: usize) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), platform.address());
        let request = request(name, target);
        let threads = (0..threads).map(|_| {
            let (stop, request) = (stop.clone(), request.clone());
            thread::spawn(move || run(address, &request, &stop))
        });
        Self { threads: threads.collect(), stop }
    }

    /// Ends it, and tells what became of the calls.
    ///
    /// # Panics
    ///
    /// If one of its threads did.
    pub fn stop(mut self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcomes::default();
        for thread in self.threads.drain(..) {
            all.add(thread.join().expect("calls do not panic"));
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Outcomes {
    /// How many calls had this status.
    pub fn with(&self, status: u16) -> usize {
        self.statuses.get(&status).copied().unwrap_or(0)
    }

    /// How many calls had another status than 200, or no response.
    pub fn others(&self) -> usize {
        self.statuses.iter().filter(|(status, _)| **status != 200).map(|(_, count)| count).sum()
    }

    /// How many calls there were.
    pub fn count(&self) -> usize {
        self.statuses.values().sum()
    }

    fn note(&mut self, outcome: anyhow::Result<Response>) {
        const REASONS: usize = 5;
        let (status, reason) = match outcome {
            Ok(response) if response.status() == 200 => {
                *self.bodies.entry(response.text()).or_default() += 1;
                (200, None)
            }
            Ok(response) => (response.status(), Some(response.text())),
            Err(error) => (0, Some(format!("{error:#}"))),
        };
        *self.statuses.entry(status).or_default() += 1;
        self.reasons.extend(reason.filter(|_| self.reasons.len() < REASONS));
    }

    fn add(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (body, count) in other.bodies {
            *self.bodies.entry(body).or_default() += count;
        }
        self.reasons.extend(other.reasons);
    }
}

fn run(address: SocketAddr, request: &Request, stop: &AtomicBool) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let outcome = match connection.take().map_or_else(|| Connection::open(address), Ok) {
            Ok(mut open) => {
                let outcome = open.call(request);
                connection = outcome.is_ok().then_some(open);
                outcome
            }
            Err(error) => Err(error.into()),
        };
        outcomes.note(outcome);
        thread::sleep(PAUSE);
    }
    outcomes
}

/// Sends a call from so many threads at once, and waits for all answers.
///
/// # Panics
///
/// If one of its threads did.
pub fn burst(platform: &Platform, name: &str, target: &str, calls: usize) -> Outcomes {
    let (address, request) = (platform.address(), request(name, target));
    let threads: Vec<_> = (0..calls)
        .map(|_| {
            let request = request.clone();
            thread::spawn(move || Connection::open(address)?.call(&request))
        })
        .collect();
    let mut outcomes = Outcomes::default();
    for thread in threads {
        outcomes.note(thread.join().expect("a call does not panic"));
    }
    outcomes
}
