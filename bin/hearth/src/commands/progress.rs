use std::{
    cell::{Cell, RefCell},
    io::{IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, timeout_at};

use super::format::age;

/// What is over sooner needs no progress bar.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// How often a line says that something is still waited for, where nothing can be drawn.
const BEAT: Duration = Duration::from_secs(5);

/// Says on standard error what is waited for, once that takes a while: with a bar on a terminal, else
/// with a line every few seconds in which nothing else was said.
pub(crate) struct Progress {
    bar: ProgressBar,
    shown_from: Instant,
    is_terminal: bool,
    step: RefCell<String>,
    step_began: Cell<Instant>,
    next_beat: Cell<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self::with(std::io::stderr().is_terminal())
    }

    fn with(is_terminal: bool) -> Self {
        let now = Instant::now();
        Self {
            bar: ProgressBar::hidden(),
            shown_from: now + PATIENCE,
            is_terminal,
            step: RefCell::default(),
            step_began: Cell::new(now),
            next_beat: Cell::new(now + BEAT),
        }
    }

    /// The next thing that is waited for.
    pub(crate) fn step(&self, name: &str) {
        self.bar.set_style(style("{spinner} {msg} ({elapsed})"));
        self.bar.set_message(name.to_owned());
        self.bar.reset_elapsed();
        self.begin(name);
    }

    fn begin(&self, name: &str) {
        self.step.replace(name.to_owned());
        self.step_began.set(Instant::now());
    }

    /// How long the step takes so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.step_began.get().elapsed()
    }

    /// The next thing that is waited for, of which the size is known. The returned bar counts it.
    pub(crate) fn bytes(&self, name: &str, bytes: u64) -> ProgressBar {
        let text = "{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes}";
        self.bar.set_style(style(text));
        self.bar.set_length(bytes);
        self.bar.set_message(name.to_owned());
        self.begin(name);
        self.bar.clone()
    }

    /// Waits, and begins to draw if that takes too long.
    pub(crate) async fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        // Nobody may be there to read it.
        self.wait_and(what, |line| _ = writeln!(std::io::stderr(), "{line}")).await
    }

    async fn wait_and<T>(&self, what: impl Future<Output = T>, say: impl Fn(&str)) -> T {
        let mut what = pin!(what);
        if !self.is_terminal {
            loop {
                if let Ok(done) = timeout_at(self.next_beat.get(), &mut what).await {
                    return done;
                }
                self.next_beat.set(Instant::now() + BEAT);
                say(&format!("waiting: {} ({})", self.step.borrow(), age(self.elapsed())));
            }
        }
        if self.bar.is_hidden() {
            if let Ok(done) = timeout_at(self.shown_from, &mut what).await {
                return done;
            }
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(TICK);
        }
        what.await
    }

    /// Prints something while the bar steps aside.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.next_beat.set(Instant::now() + BEAT);
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("one of the templates above")
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_log_without_a_terminal_shows_life() {
        let (progress, said) = (Progress::with(false), RefCell::new(Vec::new()));
        let say = |line: &str| said.borrow_mut().push(line.to_owned());
        let wait = |seconds| progress.wait_and(sleep(Duration::from_secs(seconds)), say);
        progress.step("build");
        wait(4).await;
        assert!(said.borrow().is_empty());
        progress.aside(|| {});
        wait(4).await;
        assert!(said.borrow().is_empty(), "something was said meanwhile");
        wait(7).await;
        progress.step("start");
        wait(5).await;
        let expected = ["waiting: build (9s)", "waiting: build (14s)", "waiting: start (4s)"];
        assert_eq!(*said.borrow(), expected);
    }
}
