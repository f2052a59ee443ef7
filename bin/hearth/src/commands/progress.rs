use std::{io::IsTerminal, pin::pin, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, timeout_at};

/// What is over sooner needs no progress bar.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// Says on a terminal's standard error what is waited for, once that takes a while.
pub(crate) struct Progress {
    bar: ProgressBar,
    shown_from: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { bar: ProgressBar::hidden(), shown_from: Instant::now() + PATIENCE }
    }

    /// The next thing that is waited for.
    pub(crate) fn step(&self, name: &str) {
        self.bar.set_style(style("{spinner} {msg} ({elapsed})"));
        self.bar.set_message(name.to_owned());
        self.bar.reset_elapsed();
    }

    /// The next thing that is waited for, of which the size is known. The returned bar counts it.
    pub(crate) fn bytes(&self, name: &str, bytes: u64) -> ProgressBar {
        let text = "{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes}";
        self.bar.set_style(style(text));
        self.bar.set_length(bytes);
        self.bar.set_message(name.to_owned());
        self.bar.clone()
    }

    /// Waits, and begins to draw if that takes too long.
    pub(crate) async fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        let mut what = pin!(what);
        if self.bar.is_hidden() && std::io::stderr().is_terminal() {
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
