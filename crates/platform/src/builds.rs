//! Who may build, and who waits.
//!
//! Deployments of one function come one after the other, so a function builds once at a time, and
//! those that wait are different functions, which have their turn in the order in which they came.
//! A build that takes long makes room for the next, so that a few of them do not block all others.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

/// A build that takes longer is slow: the next one that waits begins beside it.
const SLOW: Duration = Duration::from_secs(60);
/// Builds at once, slow ones included, for each of those that may begin at once.
const MOST_WITH_SLOW: usize = 4;

/// Places for builds, and for what else keeps a processor or the disk busy.
pub(crate) struct Builds {
    /// Of builds that are not slow.
    slots: Semaphore,
    /// Of all builds.
    all: Semaphore,
    running: AtomicUsize,
    waiting: AtomicUsize,
    files: Semaphore,
}

impl Builds {
    /// So many builds at once beside slow ones, and so many sources that are unpacked or stored.
    pub(crate) fn new(most: usize) -> Self {
        let [slots, files] = [Semaphore::new(most), Semaphore::new(most)];
        let all = Semaphore::new(most * MOST_WITH_SLOW);
        let [running, waiting] = [AtomicUsize::new(0), AtomicUsize::new(0)];
        Self { slots, all, running, waiting, files }
    }

    /// Builds once there is a place. If it has to be waited for, `say` is told how many come first.
    pub(crate) async fn run<T>(
        &self,
        say: impl FnOnce(String),
        build: impl Future<Output = T>,
    ) -> T {
        let (slot, _all) = self.place(say).await;
        let _running = Counted::begin(&self.running);
        let mut build = pin!(build);
        match timeout(SLOW, &mut build).await {
            Ok(built) => built,
            Err(_) => {
                drop(slot);
                build.await
            }
        }
    }

    async fn place(&self, say: impl FnOnce(String)) -> (SemaphorePermit<'_>, SemaphorePermit<'_>) {
        if let (Ok(slot), Ok(all)) = (self.slots.try_acquire(), self.all.try_acquire()) {
            return (slot, all);
        }
        let waiting = Counted::begin(&self.waiting);
        let running = self.running.load(Ordering::Relaxed);
        say(format!("{running} builds are under way, {} wait before this one.\n", waiting.before));
        let slot = self.slots.acquire().await.expect("the semaphore is never closed");
        (slot, self.all.acquire().await.expect("the semaphore is never closed"))
    }

    /// A place for work on files that takes seconds at the most: it does not wait for builds.
    pub(crate) async fn files(&self) -> SemaphorePermit<'_> {
        self.files.acquire().await.expect("the semaphore is never closed")
    }
}

/// Counts for as long as it lives.
struct Counted<'a> {
    count: &'a AtomicUsize,
    /// How many there were before.
    before: usize,
}

impl<'a> Counted<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use tokio::{task::JoinHandle, time::Instant};

    use super::*;

    type Said = Arc<Mutex<Vec<String>>>;

    fn spawn(builds: &Arc<Builds>, said: &Said, takes: Option<Duration>) -> JoinHandle<()> {
        let (builds, said) = (builds.clone(), said.clone());
        tokio::spawn(async move {
            let say = |text| said.lock().expect("lock").push(text);
            let build = async {
                match takes {
                    Some(takes) => tokio::time::sleep(takes).await,
                    None => pending().await,
                }
            };
            builds.run(say, build).await;
        })
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn builds_wait_in_order_and_are_told_how_many_come_first() {
        let (builds, said) = (Arc::new(Builds::new(1)), Said::default());
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(spawn(&builds, &said, Some(Duration::from_secs(10))));
            settle().await;
        }
        let expected = [0, 1]
            .map(|before| format!("1 builds are under way, {before} wait before this one.\n"));
        assert_eq!(*said.lock().expect("lock"), expected);
        // One that is given up does not count any more, and takes no place.
        all[1].abort();
        let begun = Instant::now();
        all.pop().expect("three").await.expect("its turn comes");
        assert!(begun.elapsed() < Duration::from_secs(21), "{:?}", begun.elapsed());
        assert_eq!(builds.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_builds_do_not_block_others_for_ever_and_have_a_bound() {
        let (builds, said) = (Arc::new(Builds::new(2)), Said::default());
        let mut slow: Vec<_> = (0..2).map(|_| spawn(&builds, &said, None)).collect();
        settle().await;
        let begun = Instant::now();
        spawn(&builds, &said, Some(Duration::ZERO)).await.expect("it builds");
        assert!((59..61).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        slow.extend((0..8).map(|_| spawn(&builds, &said, None)));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(builds.running.load(Ordering::Relaxed), 8);
        slow.iter().for_each(JoinHandle::abort);
        spawn(&builds, &said, Some(Duration::ZERO)).await.expect("there is room again");
    }
}
