//! Places for connections, and who gives way when there is none.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use tokio::{sync::Notify, time::Instant};

use crate::client::Client;

/// How many of the longest idle are found at once: looking at all connections for each new one
/// would make a flood of them expensive.
const FOUND_AT_ONCE: usize = 64;

/// The places of a server.
pub(crate) struct Room {
    size: usize,
    started: Instant,
    /// Somebody waits for a connection to become idle.
    is_wanted: AtomicBool,
    became_idle: Notify,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    clients: Vec<Option<Arc<Client>>>,
    free: Vec<usize>,
    taken: usize,
    /// Connections that were told to give way and still have their place.
    leaving: usize,
    /// Since when which place has been idle, the longest last; may have changed.
    found: Vec<(u64, usize)>,
}

/// A connection's place, until it is dropped.
pub(crate) struct Place {
    room: Arc<Room>,
    index: usize,
}

impl Room {
    pub(crate) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            size,
            started: Instant::now(),
            is_wanted: AtomicBool::new(false),
            became_idle: Notify::new(),
            places: Mutex::default(),
        })
    }

    /// Microseconds since the server was started.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).expect("half a million years")
    }

    /// Whether there is a place.
    pub(crate) fn has_place(&self) -> bool {
        self.lock().taken < self.size
    }

    /// Gives a client a place, also beyond the room's size: whoever accepts asks first.
    pub(crate) fn enter(self: &Arc<Self>, client: Arc<Client>) -> Place {
        let mut places = self.lock();
        places.taken += 1;
        let index = match places.free.pop() {
            Some(index) => index,
            None => {
                places.clients.push(None);
                places.clients.len() - 1
            }
        };
        places.clients[index] = Some(client);
        Place { room: self.clone(), index }
    }

    /// Makes the connection that has been idle longest give way, unless one is leaving already.
    /// Without an idle one, [`Room::idle`] returns once there is.
    pub(crate) fn make_way(&self) {
        let mut places = self.lock();
        if places.leaving > 0 {
            return;
        }
        // In this order: whoever becomes idle does so first and then asks whether it is wanted.
        self.is_wanted.store(true, Ordering::SeqCst);
        if places.send_one_away() {
            self.is_wanted.store(false, Ordering::SeqCst);
        }
    }

    /// Returns when a connection has become idle after [`Room::make_way`] found none.
    pub(crate) async fn idle(&self) {
        self.became_idle.notified().await;
    }

    pub(crate) fn noticed_idle(&self) {
        if self.is_wanted.load(Ordering::SeqCst) && self.is_wanted.swap(false, Ordering::SeqCst) {
            self.became_idle.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().expect("no panic while the lock is held")
    }
}

impl Places {
    fn send_one_away(&mut self) -> bool {
        // What was found earlier may all be busy by now.
        for _ in 0..2 {
            while let Some((since, index)) = self.found.pop() {
                let client = self.clients[index].as_ref();
                if client.is_some_and(|client| client.give_way(since)) {
                    self.leaving += 1;
                    return true;
                }
            }
            self.find();
        }
        false
    }

    fn find(&mut self) {
        let idle = self.clients.iter().enumerate();
        let idle = idle.filter_map(|(index, client)| Some((client.as_ref()?.idle_since()?, index)));
        let mut idle: Vec<_> = idle.collect();
        if idle.len() > FOUND_AT_ONCE {
            idle.select_nth_unstable(FOUND_AT_ONCE);
            idle.truncate(FOUND_AT_ONCE);
        }
        idle.sort_unstable_by(|a, b| b.cmp(a));
        self.found = idle;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.room.lock();
        let client = places.clients[self.index].take();
        places.free.push(self.index);
        places.taken -= 1;
        if client.is_some_and(|client| client.has_given_way()) {
            places.leaving -= 1;
        }
    }
}
