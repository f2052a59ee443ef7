//! Reading a reply's body ahead of its reader, so that no instance waits for a slow client.
//!
//! ```text
//! instance ──► task ──► queue, within limits ──► reader
//!               └─ holds the place: until the body's end has come, or the call's time is over
//! ```

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use protocol::{BodyError, BodyStream};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

/// The most bytes that wait for one reader: four windows of our worker protocol.
const MOST_OF_ONE: usize = 1 << 20;
/// The most bytes that wait for all readers. Beyond it, one part waits for each.
const MOST_OF_ALL: usize = 128 << 20;

/// What all readers of one executor have in common: the bytes that wait for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<AtomicUsize>);

/// The rest of a body, as its reader sees it. Dropping it cancels the call, unless its end has
/// come.
struct Readahead {
    parts: mpsc::UnboundedReceiver<Result<Bytes, BodyError>>,
    queue: Arc<Queue>,
}

/// The bytes that wait for one reader.
struct Queue {
    bytes: AtomicUsize,
    all: Waiting,
    taken: Notify,
}

/// Reads `rest` from now on. Returns what its reader gets, and the task that reads, which drops
/// `rest`, and the place that it holds, as soon as it needs it no more.
///
/// The task ends at the `deadline`, whether the reader has kept up or not, and when the reader is
/// dropped.
pub(crate) fn read_ahead(
    rest: BodyStream,
    deadline: Option<Instant>,
    all: &Waiting,
) -> (BodyStream, impl Future<Output = ()> + Send + 'static) {
    let (sender, parts) = mpsc::unbounded_channel();
    let queue =
        Arc::new(Queue { bytes: AtomicUsize::new(0), all: all.clone(), taken: Notify::new() });
    let reading = read(rest, deadline, sender, queue.clone());
    (Box::pin(Readahead { parts, queue }), reading)
}

async fn read(
    mut rest: BodyStream,
    deadline: Option<Instant>,
    parts: mpsc::UnboundedSender<Result<Bytes, BodyError>>,
    queue: Arc<Queue>,
) {
    loop {
        let part = tokio::select! {
            biased;
            () = parts.closed() => return,
            part = std::future::poll_fn(|cx| rest.as_mut().poll_next(cx)) => part,
        };
        let Some(part) = part else { return };
        let is_last = part.is_err();
        queue.add(part.as_ref().map_or(0, Bytes::len));
        if parts.send(part).is_err() || is_last {
            return;
        }
        while queue.is_full() {
            tokio::select! {
                () = parts.closed() => return,
                () = queue.taken.notified() => {}
                () = passed(deadline) => {
                    let _ = parts.send(Err(BodyError::TimedOut));
                    return;
                }
            }
        }
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Queue {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.all.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
        self.taken.notify_one();
    }

    fn is_full(&self) -> bool {
        match self.bytes.load(Ordering::Relaxed) {
            0 => false,
            bytes => bytes >= MOST_OF_ONE || self.all.0.load(Ordering::Relaxed) >= MOST_OF_ALL,
        }
    }
}

/// What nobody took does not wait any more.
impl Drop for Queue {
    fn drop(&mut self) {
        let left = *self.bytes.get_mut();
        self.all.0.fetch_sub(left, Ordering::Relaxed);
    }
}

impl Stream for Readahead {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let part = std::task::ready!(self.parts.poll_recv(cx));
        if let Some(Ok(part)) = &part {
            self.queue.take(part.len());
        }
        Poll::Ready(part)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{Mutex, Weak},
        time::Duration,
    };

    use tokio::{task::yield_now, time::timeout};

    use super::*;

    /// Parts of 64 KiB that are there at once, then the end, if it has one.
    struct Parts {
        left: usize,
        has_end: bool,
        given: Arc<AtomicUsize>,
        _place: Arc<()>,
    }

    impl Stream for Parts {
        type Item = Result<Bytes, BodyError>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            match self.left.checked_sub(1) {
                Some(left) => {
                    self.left = left;
                    self.given.fetch_add(1, Ordering::Relaxed);
                    Poll::Ready(Some(Ok(vec![0; 64 << 10].into())))
                }
                None if self.has_end => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    struct Lab {
        reader: BodyStream,
        place: Weak<()>,
        given: Arc<AtomicUsize>,
    }

    fn start(left: usize, has_end: bool, deadline: Option<Instant>, all: &Waiting) -> Lab {
        let (place, given) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let weak = Arc::downgrade(&place);
        let rest = Box::pin(Parts { left, has_end, given: given.clone(), _place: place });
        let (reader, reading) = read_ahead(rest, deadline, all);
        tokio::spawn(reading);
        Lab { reader, place: weak, given }
    }

    impl Lab {
        async fn until_free(&self) {
            let free = async {
                while self.place.strong_count() > 0 {
                    yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), free).await.expect("its end has come");
        }

        /// What the reader gets until the end: parts, and an error.
        async fn rest(&mut self) -> (usize, Option<BodyError>) {
            let mut parts = 0;
            loop {
                match std::future::poll_fn(|cx| self.reader.as_mut().poll_next(cx)).await {
                    Some(Ok(_)) => parts += 1,
                    Some(Err(error)) => return (parts, Some(error)),
                    None => return (parts, None),
                }
            }
        }
    }

    async fn settle() {
        for _ in 0..1000 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_reply_that_is_complete_leaves_its_place_before_anybody_reads_it() {
        let mut lab = start(10, true, None, &Waiting::default());
        lab.until_free().await;
        let (parts, error) = lab.rest().await;
        assert_eq!(parts, 10);
        assert!(error.is_none(), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_too_slow_loses_its_place_at_the_deadline() {
        let seconds = Duration::from_secs;
        let deadline = Instant::now() + seconds(10);
        let mut lab = start(1000, true, Some(deadline), &Waiting::default());
        tokio::time::sleep(seconds(9)).await;
        assert_eq!(lab.given.load(Ordering::Relaxed), 16, "no more than 1 MiB");
        assert_eq!(lab.place.strong_count(), 1);
        tokio::time::sleep(seconds(2)).await;
        assert_eq!(lab.place.strong_count(), 0);
        let (parts, error) = lab.rest().await;
        assert_eq!(parts, 16, "what was there is read");
        assert!(matches!(error, Some(BodyError::TimedOut)), "{error:?}");
    }

    #[tokio::test]
    async fn all_readers_together_have_a_limit_and_none_stops() {
        let all = Waiting::default();
        let mut labs: Vec<_> = (0..200).map(|_| start(30, false, None, &all)).collect();
        settle().await;
        let waiting = all.0.load(Ordering::Relaxed);
        assert!((MOST_OF_ALL..MOST_OF_ALL + (200 << 16)).contains(&waiting), "{waiting}");
        let mut seen = VecDeque::new();
        for lab in &mut labs {
            let part = std::future::poll_fn(|cx| lab.reader.as_mut().poll_next(cx)).await;
            seen.extend(part.map(|part| part.is_ok()));
        }
        assert_eq!(seen.len(), 200, "each gets its first part");
        drop(labs);
        settle().await;
        assert_eq!(all.0.load(Ordering::Relaxed), 0, "and nothing is left behind");
    }

    #[tokio::test]
    async fn dropping_the_reader_gives_the_call_up() {
        struct Noted(Arc<Mutex<Vec<&'static str>>>, &'static str);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.lock().expect("no panic").push(self.1);
            }
        }
        impl Stream for Noted {
            type Item = Result<Bytes, BodyError>;
            fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                Poll::Pending
            }
        }
        let dropped = Arc::new(Mutex::default());
        let rest = Box::pin(Noted(dropped.clone(), "call"));
        let (reader, reading) = read_ahead(rest, None, &Waiting::default());
        let task = tokio::spawn(reading);
        yield_now().await;
        drop(reader);
        task.await.expect("no panic");
        assert_eq!(*dropped.lock().expect("no panic"), ["call"]);
    }
}
