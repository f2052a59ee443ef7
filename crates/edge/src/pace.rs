//! How fast a body must come.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::Body;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::Unread;

/// How fast a body must come.
#[derive(Clone, Copy, Debug)]
pub struct PaceLimits {
    /// The longest pause.
    pub pause: Duration,
    /// Of this length are the windows, one behind the other, in which a body must keep to
    /// [`PaceLimits::bytes_per_second`].
    pub window: Duration,
    /// The least speed in each window. What came before it does not count.
    pub bytes_per_second: u32,
    /// The longest that a body may take, however fast it comes.
    pub longest: Duration,
}

impl Default for PaceLimits {
    fn default() -> Self {
        Self {
            pause: Duration::from_secs(30),
            window: Duration::from_secs(30),
            bytes_per_second: 1 << 10,
            longest: Duration::from_secs(300),
        }
    }
}

/// Reads a body's parts as long as they come fast enough.
pub(crate) struct Pace {
    limits: PaceLimits,
    /// Since the body was first waited for: most are there already, and need no clock.
    clock: Option<Clock>,
}

struct Clock {
    began: Instant,
    /// When the last part came.
    last: Instant,
    window: Instant,
    in_window: usize,
    /// When it is worth looking: never later than one of the limits.
    look: Pin<Box<Sleep>>,
}

impl Pace {
    pub(crate) fn new(limits: PaceLimits) -> Self {
        Self { limits, clock: None }
    }

    /// The next part; none at the body's end. Trailers are left out.
    pub(crate) async fn next<B>(&mut self, body: &mut B) -> Result<Option<Bytes>, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        std::future::poll_fn(|cx| self.poll_next(cx, body)).await
    }

    pub(crate) fn poll_next<B>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut B,
    ) -> Poll<Result<Option<Bytes>, Unread>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Unread::Broken)),
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(part) = frame.into_data() else { continue };
                    if !body.is_end_stream()
                        && let Some(clock) = &mut self.clock
                    {
                        clock.came(part.len());
                        clock.check(&self.limits)?;
                    }
                    return Poll::Ready(Ok(Some(part)));
                }
                Poll::Pending => {
                    let clock = self.clock.get_or_insert_with(|| Clock::start(&self.limits));
                    std::task::ready!(clock.look.as_mut().poll(cx));
                    clock.check(&self.limits)?;
                    let due = clock.due(&self.limits);
                    clock.look.as_mut().reset(due);
                }
            }
        }
    }
}

impl Clock {
    fn start(limits: &PaceLimits) -> Self {
        let now = Instant::now();
        let first = limits.pause.min(limits.window).min(limits.longest);
        let look = Box::pin(sleep_until(now + first));
        Self { began: now, last: now, window: now, in_window: 0, look }
    }

    fn came(&mut self, bytes: usize) {
        self.last = Instant::now();
        self.in_window = self.in_window.saturating_add(bytes);
    }

    fn due(&self, limits: &PaceLimits) -> Instant {
        let (pause, window) = (self.last + limits.pause, self.window + limits.window);
        pause.min(window).min(self.began + limits.longest)
    }

    /// Whether it has been fast enough so far; begins the next window when one is over.
    fn check(&mut self, limits: &PaceLimits) -> Result<(), Unread> {
        let now = Instant::now();
        let has_paused = now >= self.last + limits.pause;
        if has_paused || now >= self.began + limits.longest {
            return Err(Unread::TooSlow);
        }
        if now >= self.window + limits.window {
            let due = limits.window.as_millis() * u128::from(limits.bytes_per_second) / 1000;
            if (self.in_window as u128) < due {
                return Err(Unread::TooSlow);
            }
            (self.window, self.in_window) = (now, 0);
        }
        Ok(())
    }
}
