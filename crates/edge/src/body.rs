//! Reading requests' bodies, within limits.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    pace::{Pace, PaceLimits},
    pool::{Held, Pool, PoolLimits},
};

/// The most bytes of a refused body that are read so that the client sees the refusal.
const MAX_DISCARDED: usize = 256 << 20;

/// What clients may take for bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// The most bytes of one.
    pub size: usize,
    /// The most bytes of all that are in memory at once, and the shares in it. One that comes in a
    /// single piece does not count: it is not larger than what each connection may buffer anyway.
    pub memory: PoolLimits,
    /// How fast they must come.
    pub pace: PaceLimits,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { size: 20 << 20, memory: PoolLimits::default(), pace: PaceLimits::default() }
    }
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is larger than the limit.
    #[error("the body is too large")]
    TooLarge,
    /// Other bodies take all the memory there is for them, or the share of this one's client or
    /// function.
    #[error("other bodies take all the memory for them")]
    NoRoom,
    /// The client paused for too long, or was too slow altogether.
    #[error("the body does not come fast enough")]
    TooSlow,
    /// The connection or the encoding broke.
    #[error("the body broke off")]
    Broken,
}

/// Who takes memory for a body.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Who sends it.
    pub client: IpAddr,
    /// Which function it is for.
    pub function: &'a str,
}

/// Reads the bodies of one server's requests.
pub struct Bodies {
    limits: BodyLimits,
    pool: Pool,
}

impl Bodies {
    /// Keeps to these limits.
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, pool: Pool::new(limits.memory) }
    }

    /// The limits.
    pub fn limits(&self) -> &BodyLimits {
        &self.limits
    }

    /// Reads a body as a whole. The rest of one that is refused for its size goes to
    /// [`Bodies::refuse`].
    ///
    /// When there is no memory left, the body that has come most slowly of late gives way, if one
    /// is slow. Dropping the future closes the connection once it has been answered.
    pub async fn read<B>(&self, mut body: B, sender: &Sender<'_>) -> Result<Bytes, Unread>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Send,
    {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let announced = body.size_hint().lower();
        let fits = usize::try_from(announced).is_ok_and(|size| size <= self.limits.size);
        let outcome =
            if fits { self.collect(&mut body, sender).await } else { Err(Unread::TooLarge) };
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
            tokio::spawn(discard(body, self.limits.pace));
        }
    }

    async fn collect<B>(&self, body: &mut B, sender: &Sender<'_>) -> Result<Bytes, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut pace = Pace::new(self.limits.pace);
        let Some(first) = pace.next(body).await? else { return Ok(Bytes::new()) };
        if first.len() > self.limits.size {
            return Err(Unread::TooLarge);
        }
        if body.is_end_stream() {
            return Ok(first);
        }
        let mut held = Held::new(&self.pool, sender);
        held.extend(&first).await?;
        drop(first);
        loop {
            let part = tokio::select! {
                biased;
                part = pace.next(body) => part?,
                () = held.must_give_way() => return Err(Unread::TooSlow),
            };
            let Some(part) = part else { return Ok(held.complete()) };
            if held.len() + part.len() > self.limits.size {
                return Err(Unread::TooLarge);
            }
            held.extend(&part).await?;
        }
    }
}

async fn discard<B>(mut body: B, limits: PaceLimits)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = MAX_DISCARDED;
    let mut pace = Pace::new(limits);
    while let Ok(Some(part)) = pace.next(&mut body).await {
        match left.checked_sub(part.len()) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// A body that ends with an error once it does not come fast enough. For those who read it piece by
/// piece.
pub struct Paced<B> {
    body: B,
    pace: Pace,
}

impl<B> Paced<B> {
    /// The same body, which must keep to these limits from now on.
    pub fn new(body: B, limits: PaceLimits) -> Self {
        Self { body, pace: Pace::new(limits) }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        let Self { body, pace } = &mut *self;
        let part = std::task::ready!(pace.poll_next(cx, body));
        Poll::Ready(part.transpose().map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        net::Ipv4Addr,
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
        time::Duration,
    };

    use http_body_util::BodyExt;
    use tokio::time::{Instant, Sleep, sleep};

    use super::*;

    const A: Sender<'static> =
        Sender { client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), function: "a" };
    const B: Sender<'static> =
        Sender { client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), function: "b" };

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
            (29, 1, seconds(1), Ok(29)),                // over within the first window
            (60, 1, seconds(1), Err(Unread::TooSlow)),  // trickling for ever
            (290, 1024, seconds(1), Ok(290 << 10)),     // just fast enough
            (3, 40 << 10, seconds(29), Ok(120 << 10)),  // bursts count, one in each window
            (400, 1024, seconds(1), Err(Unread::TooSlow)), // five minutes are enough
            (21, 1 << 20, seconds(0), Err(Unread::TooLarge)),
            (20, 1 << 20, seconds(0), Ok(20 << 20)),
            (0, 0, seconds(0), Ok(0)),
        ] {
            let outcome = bodies.read(Parts::new(count, size, pause), &A).await;
            let length = outcome.map(|bytes| bytes.len());
            assert_eq!(length, expected, "{count} parts of {size} bytes each {pause:?}");
        }
    }

    /// What comes as soon as it is waited for, and then nothing but a byte every ten seconds.
    struct Trickle(Option<usize>, Pin<Box<Sleep>>);

    impl Trickle {
        fn after(size: usize) -> Self {
            Self(Some(size), Box::pin(sleep(Duration::from_millis(1))))
        }
    }

    impl Body for Trickle {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::ready!(self.1.as_mut().poll(cx));
            self.1 = Box::pin(sleep(Duration::from_secs(10)));
            let size = self.0.take().unwrap_or(1);
            Poll::Ready(Some(Ok(Frame::data(vec![b'x'; size].into()))))
        }
    }

    fn bodies(limits: PoolLimits) -> Arc<Bodies> {
        Arc::new(Bodies::new(BodyLimits { memory: limits, ..BodyLimits::default() }))
    }

    async fn read(
        bodies: &Bodies,
        count: usize,
        size: usize,
        sender: Sender<'_>,
    ) -> Result<Bytes, Unread> {
        bodies.read(Parts::new(count, size, Duration::ZERO), &sender).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_does_not_pay_for_a_trickle() {
        let bodies = Bodies::new(BodyLimits::default());
        let started = Instant::now();
        let outcome = bodies.read(Trickle::after(19 << 20), &A).await;
        assert_eq!(outcome, Err(Unread::TooSlow));
        assert!(started.elapsed() <= Duration::from_secs(60), "{:?}", started.elapsed());
        let mut paced = Paced::new(Trickle::after(19 << 20), PaceLimits::default());
        let outcome = loop {
            match paced.frame().await {
                Some(Ok(_)) => {}
                outcome => break outcome.map(|frame| frame.map(drop)),
            }
        };
        assert_eq!(outcome, Some(Err(Unread::TooSlow)));
    }

    #[tokio::test(start_paused = true)]
    async fn all_bodies_together_have_a_limit() {
        let bodies = bodies(PoolLimits { total: 100, per_client: 100, per_function: 100 });
        let first = read(&bodies, 6, 10, A).await.expect("room for 60");
        let second = read(&bodies, 4, 10, B).await.expect("room for 40");
        assert_eq!(read(&bodies, 2, 10, A).await, Err(Unread::NoRoom));
        assert!(read(&bodies, 1, 10, A).await.is_ok(), "a single piece");
        drop(second);
        assert_eq!(read(&bodies, 6, 10, A).await, Err(Unread::NoRoom), "what was taken comes back");
        let third = read(&bodies, 4, 10, A).await.expect("room for 40 again");
        assert_eq!((first.len(), third.len()), (60, 40));
    }

    #[tokio::test(start_paused = true)]
    async fn no_client_and_no_function_takes_more_than_its_share() {
        let limits = PoolLimits { total: 100, per_client: 50, per_function: 50 };
        let bodies = bodies(limits);
        let _held = read(&bodies, 5, 10, A).await.expect("a share");
        assert_eq!(read(&bodies, 2, 10, A).await, Err(Unread::NoRoom));
        let from_elsewhere = Sender { client: B.client, ..A };
        assert_eq!(read(&bodies, 2, 10, from_elsewhere).await, Err(Unread::NoRoom), "a function's");
        let to_another = Sender { function: "b", ..A };
        assert_eq!(read(&bodies, 2, 10, to_another).await, Err(Unread::NoRoom), "a client's");
        read(&bodies, 5, 10, B).await.expect("what is left is others'");
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_network_are_one_client() {
        let limits = PoolLimits { total: 100, per_client: 50, per_function: 100 };
        let bodies = bodies(limits);
        let from =
            |client: &str| Sender { client: client.parse().expect("an address"), function: "a" };
        let _held = read(&bodies, 5, 10, from("2001:db8::1")).await.expect("a share");
        assert_eq!(read(&bodies, 2, 10, from("2001:db8::2:3")).await, Err(Unread::NoRoom));
        read(&bodies, 2, 10, from("2001:db8:0:1::1")).await.expect("another network");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_gives_way_to_one_that_comes() {
        for (total, sender) in [(1000, B), (10_000, A)] {
            let per = 1000.min(total);
            let bodies = bodies(PoolLimits { total, per_client: per, per_function: per });
            let mut trickling = Vec::new();
            for _ in 0..4 {
                let bodies = bodies.clone();
                let read = async move { bodies.read(Trickle::after(240), &A).await };
                trickling.push(tokio::spawn(read));
            }
            sleep(Duration::from_secs(5)).await;
            let started = Instant::now();
            let body = read(&bodies, 5, 100, sender).await.expect("they give way");
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
            assert_eq!(body.len(), 500);
            let given_way = trickling.iter().filter(|task| task.is_finished()).count();
            assert_eq!(given_way, 2, "no more than needed");
        }
    }
}
