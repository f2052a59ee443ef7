//! What is served: a function's code with its settings, and how an instance becomes its own.

use std::{path::PathBuf, sync::Arc, time::Duration};

use model::{InstanceId, Limits, Phases, Scale, describe};
use protocol::{BindError, Binding, CallError};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::{
    instance::{Running, StartError},
    pool::Policy,
    stock::Stock,
};

/// A function's code and settings, as they do not change while they are served.
pub struct Revision {
    /// The function's name, for logs and reports.
    pub label: String,
    /// Where its instances come from.
    pub stock: Arc<Stock>,
    /// The built code: a directory on this host.
    pub artifact: PathBuf,
    /// The file that defines the function, relative to the artifact.
    pub entrypoint: String,
    /// The function's environment.
    pub environment: Vec<(String, String)>,
    /// What an instance may use.
    pub limits: Limits,
    /// How many instances there are, and what each takes.
    pub scale: Scale,
    /// Whether every call gets an instance of its own.
    pub is_single_use: bool,
    /// How long the code may take to load.
    pub bind_timeout: Duration,
    /// Told of each instance that is about to become this function's.
    pub on_bind: Option<OnBind>,
}

/// What is told of an instance.
pub type OnBind = Arc<dyn Fn(&InstanceId) + Send + Sync>;

/// How long the parts of a start took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StartPhases {
    spare: Duration,
    attach: Duration,
    bind: Duration,
}

impl Revision {
    pub(crate) fn policy(&self) -> Policy {
        let concurrency = if self.is_single_use { 1 } else { self.scale.concurrency };
        Policy {
            scale: Scale { concurrency, ..self.scale },
            calls_in_life: self.is_single_use.then_some(1),
        }
    }

    /// A spare made the function's, or else a new instance, for which `make_room` is asked first.
    /// Dropping the future stops what was started.
    pub(crate) async fn start(
        &self,
        make_room: impl Fn(),
    ) -> Result<(Running, StartPhases), CallError> {
        // An engine that hangs must not keep calls, and a place, for ever.
        let longest = self.stock.ready_timeout() * 2 + self.bind_timeout;
        let started = timeout(longest, self.try_start(make_room)).await;
        let started = started.unwrap_or(Err(StartError::TimedOut(longest)));
        started.map_err(|error| unavailable(&self.label, &error))
    }

    async fn try_start(&self, make_room: impl Fn()) -> Result<(Running, StartPhases), StartError> {
        let begun = Instant::now();
        while let Some(spare) = self.stock.take() {
            match self.bind(&spare, begun).await {
                Ok(phases) => {
                    self.stock.note(true);
                    return Ok((spare, phases));
                }
                // It may have ended while it waited; that is not the function's fault.
                Err(StartError::Attach(_)) => {}
                Err(StartError::Bind(BindError::Lost { .. }))
                    if spare.own_end().await.is_none() => {}
                Err(error) => {
                    let error = explained(error, &spare).await;
                    self.stock.note(true);
                    return Err(error);
                }
            }
        }
        self.stock.note(false);
        make_room();
        let running = self.stock.launch().await?;
        match self.bind(&running, begun).await {
            Ok(phases) => Ok((running, phases)),
            Err(error) => Err(explained(error, &running).await),
        }
    }

    async fn bind(&self, running: &Running, begun: Instant) -> Result<StartPhases, StartError> {
        let spare = begun.elapsed();
        let load = async {
            let attaching = Instant::now();
            let engine = self.stock.engine();
            let code_directory = engine.attach(running, &self.artifact, &self.limits).await?;
            let (attach, binding) = (attaching.elapsed(), Instant::now());
            if let Some(on_bind) = &self.on_bind {
                on_bind(&running.id);
            }
            running
                .connection
                .bind(&Binding {
                    code_directory,
                    entrypoint: self.entrypoint.clone(),
                    environment: self.environment.clone(),
                })
                .await?;
            Ok(StartPhases { spare, attach, bind: binding.elapsed() })
        };
        let late = |_| StartError::TimedOut(self.bind_timeout);
        timeout(self.bind_timeout, load).await.map_err(late)?
    }
}

impl StartPhases {
    /// What of a wait was for this start, from its end backwards; the rest was for a place.
    pub(crate) fn explain(self, waited: Duration) -> Phases {
        let bind = self.bind.min(waited);
        let attach = self.attach.min(waited - bind);
        let spare = self.spare.min(waited - bind - attach);
        let wait = waited - bind - attach - spare;
        Phases { wait, spare, attach, bind, ..Phases::default() }
    }
}

/// Says how the instance ended, where that is why it could not be bound.
async fn explained(error: StartError, running: &Running) -> StartError {
    if !matches!(error, StartError::Bind(BindError::Lost { .. })) {
        return error;
    }
    running.own_end().await.map_or(error, StartError::Ended)
}

fn unavailable(label: &str, error: &StartError) -> CallError {
    match error {
        StartError::Bind(BindError::Load { message }) => {
            CallError::NotLoaded { message: message.clone() }
        }
        error => {
            let why = describe(error);
            warn!(function = label, error = why, "could not start an instance");
            CallError::Unavailable { why: format!("The function could not be started: {why}.") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_explained_from_its_end() {
        let millis = Duration::from_millis;
        let start = StartPhases { spare: millis(40), attach: millis(2), bind: millis(5) };
        for (waited, expected, why) in [
            (47, [0, 40, 2, 5], "it began with the start"),
            (60, [13, 40, 2, 5], "and waited before it"),
            (10, [0, 3, 2, 5], "it joined a start that was under way"),
            (6, [0, 0, 1, 5], "late"),
            (1, [0, 0, 0, 1], "very late"),
        ] {
            let Phases { wait, spare, attach, bind, .. } = start.explain(millis(waited));
            assert_eq!([wait, spare, attach, bind], expected.map(millis), "{why}");
        }
    }
}
