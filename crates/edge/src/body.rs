//! Reading requests' bodies, within limits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::{Instant, timeout};

/// The most bytes of a refused body that are read so that the client sees the refusal.
const MAX_DISCARDED: usize = 256 << 20;

/// What clients may take for bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// The most bytes of one.
    pub size: usize,
    /// The most bytes of all that are in memory at once. One that comes in a single piece does not
    /// count: it is not larger than what each connection may buffer anyway.
    pub total: usize,
    /// The longest pause.
    pub pause: Duration,
    /// How long one may take before it must keep to [`BodyLimits::bytes_per_second`].
    pub grace: Duration,
    /// The least speed on the average, after the grace.
    pub bytes_per_second: u32,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            size: 20 << 20,
            total: 512 << 20,
            pause: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            bytes_per_second: 1 << 10,
        }
    }
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is larger than the limit.
    TooLarge,
    /// Other bodies take all the memory there is for them.
    NoRoom,
    /// The client paused for too long, or was too slow altogether.
    TooSlow,
    /// The connection or the encoding broke.
    Broken,
}

/// Reads the bodies of one server's requests.
pub struct Bodies {
    limits: BodyLimits,
    left: Arc<AtomicUsize>,
}

impl Bodies {
    /// Keeps to these limits.
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, left: Arc::new(AtomicUsize::new(limits.total)) }
    }

    /// The limits.
    pub fn limits(&self) -> &BodyLimits {
        &self.limits
    }

    /// Reads a body as a whole. The rest of one that is refused for its size goes to
    /// [`Bodies::refuse`].
    ///
    /// Dropping the future closes the connection once it has been answered.
    pub async fn read<B>(&self, mut body: B) -> Result<Bytes, Unread>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Send,
    {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let announced = body.size_hint().lower();
        let fits = usize::try_from(announced).is_ok_and(|size| size <= self.limits.size);
        let outcome = if fits { self.collect(&mut body).await } else { Err(Unread::TooLarge) };
        if let Err(Unread::TooLarge | Unread::NoRoom) = outcome {
            self.refuse(body);
        }
        outcome
    }

    /// Reads a body on and throws it away, in a task of its own, up to 256 MiB: a client that is
    /// still sending would not see an answer on a closed connection.
    pub fn refuse<B>(&self, body: B)
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Send,
    {
        if !body.is_end_stream() {
            tokio::spawn(discard(body, self.limits));
        }
    }

    async fn collect<B>(&self, body: &mut B) -> Result<Bytes, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut held = Held { bytes: BytesMut::new(), taken: 0, left: self.left.clone() };
        let mut pace = Pace::new(&self.limits);
        while let Some(part) = pace.next(body).await? {
            if held.bytes.len() + part.len() > self.limits.size {
                return Err(Unread::TooLarge);
            }
            if held.bytes.is_empty() && body.is_end_stream() {
                return Ok(part);
            }
            held.extend(&part)?;
        }
        Ok(Bytes::from_owner(held))
    }
}

/// A body that has its share of the memory for all.
struct Held {
    bytes: BytesMut,
    taken: usize,
    left: Arc<AtomicUsize>,
}

impl Held {
    fn extend(&mut self, part: &Bytes) -> Result<(), Unread> {
        let size = part.len();
        let take = |left: usize| left.checked_sub(size);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map_err(|_| Unread::NoRoom)?;
        self.taken += size;
        self.bytes.extend_from_slice(part);
        Ok(())
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

async fn discard<B>(mut body: B, limits: BodyLimits)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = MAX_DISCARDED;
    let mut pace = Pace::new(&limits);
    while let Ok(Some(part)) = pace.next(&mut body).await {
        match left.checked_sub(part.len()) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// Reads a body's parts as long as they come fast enough.
struct Pace<'a> {
    limits: &'a BodyLimits,
    /// When the first part came: most bodies have no other, and need no clock.
    started: Option<Instant>,
    received: usize,
}

impl<'a> Pace<'a> {
    fn new(limits: &'a BodyLimits) -> Self {
        Self { limits, started: None, received: 0 }
    }

    async fn next<B>(&mut self, body: &mut B) -> Result<Option<Bytes>, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            let frame = timeout(self.limits.pause, body.frame()).await;
            let Some(frame) = frame.map_err(|_| Unread::TooSlow)? else { return Ok(None) };
            let frame = frame.map_err(|_| Unread::Broken)?;
            // Trailers have no use here.
            let Ok(part) = frame.into_data() else { continue };
            self.received = self.received.saturating_add(part.len());
            if !body.is_end_stream() && self.is_too_slow() {
                return Err(Unread::TooSlow);
            }
            return Ok(Some(part));
        }
    }

    fn is_too_slow(&mut self) -> bool {
        let elapsed = self.started.get_or_insert_with(Instant::now).elapsed();
        let counted = elapsed.saturating_sub(self.limits.grace);
        let due = counted.as_millis() * u128::from(self.limits.bytes_per_second) / 1000;
        (self.received as u128) < due
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper::body::Frame;
    use tokio::time::{Sleep, sleep};

    use super::*;

    /// So many parts of so many bytes, with pauses before each.
    struct Parts {
        left: usize,
        size: usize,
        pause: Duration,
        sleeping: Pin<Box<Sleep>>,
    }

    impl Parts {
        fn new(count: usize, size: usize, pause: Duration) -> Self {
            Self { left: count, size, pause, sleeping: Box::pin(sleep(pause)) }
        }
    }

    impl Body for Parts {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
            std::task::ready!(self.sleeping.as_mut().poll(cx));
            self.left = left;
            self.sleeping = Box::pin(sleep(self.pause));
            Poll::Ready(Some(Ok(Frame::data(vec![b'x'; self.size].into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.left == 0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_and_not_too_slow() {
        let bodies = Bodies::new(BodyLimits::default());
        let seconds = Duration::from_secs;
        for (count, size, pause, expected) in [
            (1, 10, seconds(29), Ok(10)),
            (1, 10, seconds(31), Err(Unread::TooSlow)), // one pause too long
            (29, 1, seconds(1), Ok(29)),                // over within the grace
            (60, 1, seconds(1), Err(Unread::TooSlow)),  // trickling for ever
            (600, 1024, seconds(1), Ok(600 << 10)),     // just fast enough
            (3, 40 << 10, seconds(29), Ok(120 << 10)),  // bursts count on the average
            (21, 1 << 20, seconds(0), Err(Unread::TooLarge)),
            (20, 1 << 20, seconds(0), Ok(20 << 20)),
            (0, 0, seconds(0), Ok(0)),
        ] {
            let outcome = bodies.read(Parts::new(count, size, pause)).await;
            let length = outcome.map(|bytes| bytes.len());
            assert_eq!(length, expected, "{count} parts of {size} bytes each {pause:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_bodies_together_have_a_limit() {
        let bodies = Bodies::new(BodyLimits { total: 100, ..BodyLimits::default() });
        let read = async |count, size| {
            let parts = Parts::new(count, size, Duration::ZERO);
            bodies.read(parts).await
        };
        let first = read(6, 10).await.expect("room for 60");
        let second = read(4, 10).await.expect("room for 40");
        assert_eq!(read(2, 10).await, Err(Unread::NoRoom));
        assert!(read(1, 10).await.is_ok(), "a single piece");
        drop(second);
        assert_eq!(read(6, 10).await, Err(Unread::NoRoom), "and what was taken comes back");
        let third = read(4, 10).await.expect("room for 40 again");
        assert_eq!((first.len(), third.len()), (60, 40));
    }
}
