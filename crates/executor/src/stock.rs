//! Spares: instances that wait, unbound.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::Notify;
use tracing::warn;

use crate::instance::{Engine, LaunchError, Running, Template};

/// How long nothing is launched after a launch has failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Keeps a number of spares of one runtime waiting.
pub struct Stock {
    engine: Engine,
    template: Template,
    wanted: usize,
    waiting: Mutex<VecDeque<Running>>,
    taken: Notify,
}

impl Stock {
    /// A stock that wants `wanted` spares waiting. [`Stock::keep`] makes them.
    pub fn new(engine: Engine, template: Template, wanted: usize) -> Arc<Self> {
        Arc::new(Self { engine, template, wanted, waiting: Mutex::default(), taken: Notify::new() })
    }

    /// Fills the stock, and again whenever a spare is taken or has ended. Runs until it is dropped.
    pub async fn keep(&self) {
        loop {
            let some_end = self.engine.some_end();
            while self.count() < self.wanted {
                match self.launch().await {
                    Ok(spare) => self.waiting().push_back(spare),
                    Err(error) => {
                        warn!(error = describe(&error), "could not make a spare");
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
            }
            tokio::select! {
                () = self.taken.notified() => {}
                () = some_end => {}
            }
        }
    }

    /// How many spares wait.
    pub fn count(&self) -> usize {
        let mut waiting = self.waiting();
        waiting.retain(|spare| !spare.has_ended());
        waiting.len()
    }

    /// Stops all spares.
    pub fn clear(&self) {
        self.waiting().clear();
    }

    /// What its instances may use.
    pub(crate) fn limits(&self) -> &model::Limits {
        &self.template.spec.limits
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes the spare that has waited longest, if one waits. It may have ended a moment ago.
    pub(crate) fn take(&self) -> Option<Running> {
        let mut waiting = self.waiting();
        let spare = std::iter::from_fn(|| waiting.pop_front()).find(|spare| !spare.has_ended());
        self.taken.notify_one();
        spare
    }

    /// Launches an instance that has not waited.
    pub(crate) async fn launch(&self) -> Result<Running, LaunchError> {
        self.engine.launch(&self.template).await
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Running>> {
        self.waiting.lock().expect("no panic while the lock is held")
    }
}

/// An error with its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
