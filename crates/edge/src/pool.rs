//! The memory for bodies, and who gives way when there is none.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::body::{Sender, Unread};

/// A body is slow that has brought less than this …
const STRIDE: usize = 64 << 10;
/// … for this long. Slow ones give way when there is no memory left.
const STRIDE_TIME: Duration = Duration::from_secs(2);
/// How long a body waits for the memory of those that give way.
const PATIENCE: Duration = Duration::from_secs(5);

/// The memory for bodies, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// For all.
    pub total: usize,
    /// For those of one client: an address, or the /64 network of an IPv6 address.
    pub per_client: usize,
    /// For those of one function.
    pub per_function: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        let total = 512 << 20;
        Self { total, per_client: total / 2, per_function: total / 2 }
    }
}

/// The memory for the bodies of one server.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    limits: PoolLimits,
    state: Mutex<State>,
    /// Some memory came back.
    freed: Notify,
}

#[derive(Default)]
struct State {
    taken: usize,
    shares: HashMap<Share, usize>,
    /// Bodies that are still coming, by number.
    coming: HashMap<u64, Coming>,
    last: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Share {
    Client(IpAddr),
    Function(Arc<str>),
}

/// A body that is still coming.
struct Coming {
    shares: [Share; 2],
    /// When it had last brought a stride, and what it has brought since.
    stride: Instant,
    since: usize,
    must_give_way: Arc<Notify>,
    gives_way: bool,
}

/// A body and the memory that it has taken.
pub(crate) struct Held {
    bytes: BytesMut,
    taken: usize,
    shares: [Share; 2],
    number: u64,
    must_give_way: Arc<Notify>,
    pool: Pool,
}

/// What became of an attempt to take memory.
enum Taken {
    Yes,
    /// There will be some: others give way.
    Soon,
    No,
}

impl Pool {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        let shared = Shared { limits, state: Mutex::default(), freed: Notify::new() };
        Self(Arc::new(shared))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while the lock is held")
    }
}

impl Held {
    pub(crate) fn new(pool: &Pool, sender: &Sender<'_>) -> Self {
        let shares =
            [Share::Client(network(sender.client)), Share::Function(sender.function.into())];
        let must_give_way = Arc::new(Notify::new());
        let mut state = pool.lock();
        state.last += 1;
        let number = state.last;
        let coming = Coming {
            shares: shares.clone(),
            stride: Instant::now(),
            since: 0,
            must_give_way: must_give_way.clone(),
            gives_way: false,
        };
        state.coming.insert(number, coming);
        drop(state);
        let bytes = BytesMut::new();
        Self { bytes, taken: 0, shares, number, must_give_way, pool: pool.clone() }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns when this body must give way to others.
    pub(crate) async fn must_give_way(&self) {
        self.must_give_way.notified().await;
    }

    /// Adds a part, for which others may have to give way first.
    pub(crate) async fn extend(&mut self, part: &Bytes) -> Result<(), Unread> {
        let (pool, must_give_way) = (self.pool.clone(), self.must_give_way.clone());
        let taking = async {
            loop {
                let freed = pool.0.freed.notified();
                match self.take(part.len()) {
                    Taken::Yes => return Ok(()),
                    Taken::No => return Err(Unread::NoRoom),
                    Taken::Soon => {}
                }
                tokio::select! {
                    () = freed => {}
                    () = must_give_way.notified() => return Err(Unread::TooSlow),
                }
            }
        };
        timeout(PATIENCE, taking).await.unwrap_or(Err(Unread::NoRoom))?;
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    fn take(&mut self, size: usize) -> Taken {
        let limits = &self.pool.0.limits;
        let mut state = self.pool.lock();
        let used = |share: &Share| state.shares.get(share).copied().unwrap_or(0);
        let [client, function] = &self.shares;
        // Who has to give way shares what there is none left of.
        let lacking = [
            (used(client) + size > limits.per_client).then_some(Some(client)),
            (used(function) + size > limits.per_function).then_some(Some(function)),
            (state.taken + size > limits.total).then_some(None),
        ];
        if let Some(lacking) = lacking.into_iter().flatten().next() {
            return match state.send_slowest_away(self.number, lacking) {
                true => Taken::Soon,
                false => Taken::No,
            };
        }
        state.taken += size;
        for share in &self.shares {
            *state.shares.entry(share.clone()).or_default() += size;
        }
        if let Some(coming) = state.coming.get_mut(&self.number) {
            coming.since += size;
            if coming.since >= STRIDE {
                (coming.since, coming.stride) = (0, Instant::now());
            }
        }
        drop(state);
        self.taken += size;
        Taken::Yes
    }

    /// The body, with its memory, which comes back when nobody needs it any more.
    pub(crate) fn complete(self) -> Bytes {
        self.pool.lock().coming.remove(&self.number);
        Bytes::from_owner(self)
    }
}

impl State {
    /// Whether a slow body among those with this share gives way, or one does already.
    fn send_slowest_away(&mut self, except: u64, share: Option<&Share>) -> bool {
        let now = Instant::now();
        let others = self.coming.iter_mut().filter(|(number, coming)| {
            **number != except && share.is_none_or(|share| coming.shares.contains(share))
        });
        let slow = others
            .map(|(_, coming)| coming)
            .filter(|coming| coming.gives_way || now.duration_since(coming.stride) >= STRIDE_TIME);
        // One at a time: it may have been enough.
        let Some(slowest) = slow.min_by_key(|coming| (!coming.gives_way, coming.stride)) else {
            return false;
        };
        if !std::mem::replace(&mut slowest.gives_way, true) {
            slowest.must_give_way.notify_one();
        }
        true
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.coming.remove(&self.number);
        state.taken -= self.taken;
        for share in &self.shares {
            if let Some(used) = state.shares.get_mut(share) {
                *used -= self.taken;
                if *used == 0 {
                    state.shares.remove(share);
                }
            }
        }
        drop(state);
        self.pool.0.freed.notify_waiters();
    }
}

/// Whoever has one IPv6 address usually has the whole /64 around it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}
