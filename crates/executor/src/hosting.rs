//! The whole life of an instance, as the table orders it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    executor::{Inner, State},
    instance::Running,
    pool::{InstanceKey, ServiceKey},
    revision::{Revision, StartPhases},
};

/// An instance of a service.
pub(crate) struct Hosted {
    pub(crate) service: ServiceKey,
    pub(crate) since: Instant,
    /// None while it is being started.
    pub(crate) running: Option<Arc<Running>>,
    /// Gives up the start.
    give_up: CancellationToken,
    is_stopped: bool,
}

impl Inner {
    /// Starts an instance, in a task that stays with it until it is gone.
    pub(crate) fn begin_start(
        self: &Arc<Self>,
        state: &mut State,
        service: ServiceKey,
        instance: InstanceKey,
    ) {
        let Some(known) = state.services.get(&service) else { return };
        let (give_up, since) = (CancellationToken::new(), Instant::now());
        let hosted =
            Hosted { service, since, running: None, give_up: give_up.clone(), is_stopped: false };
        state.instances.insert(instance, hosted);
        known.cold_starts.fetch_add(1, Ordering::Relaxed);
        let (inner, revision) = (self.clone(), known.revision.clone());
        self.tasks.spawn(async move { inner.host(&revision, instance, &give_up).await });
    }

    /// The whole life of an instance.
    async fn host(
        self: &Arc<Self>,
        revision: &Revision,
        instance: InstanceKey,
        give_up: &CancellationToken,
    ) {
        let starting = Starting::begin(&self.starting);
        let started = tokio::select! {
            biased;
            () = give_up.cancelled() => None,
            started = revision.start(|| self.make_room_beside(&revision.stock)) => Some(started),
        };
        drop(starting);
        let running = match started {
            Some(Ok((running, phases))) => self.take_in(instance, Arc::new(running), phases),
            Some(Err(cause)) => {
                self.fail(instance, Some(cause));
                None
            }
            None => {
                self.fail(instance, None);
                None
            }
        };
        let Some(running) = running else { return };
        let why = tokio::select! {
            why = running.connection.closed() => why,
            _ = running.gone() => "its process is gone".into(),
        };
        self.with_state(|state| state.pool.ended(instance, Instant::now()));
        let exit = running.gone().await;
        let was_asked = self.with_state(|state| {
            let hosted = state.instances.remove(&instance);
            let was_asked = hosted.is_none_or(|hosted| hosted.is_stopped);
            let own_end = if was_asked { None } else { crate::service::own_end(exit) };
            state.pool.removed(instance, own_end, Instant::now());
            was_asked
        });
        // How it died is no news where it was told to end.
        if was_asked {
            info!(function = revision.label, instance = %running.id, "an instance was stopped");
        } else {
            info!(function = revision.label, instance = %running.id, why, ?exit, "an instance ended");
        }
        self.touched.notify_one();
    }

    /// An instance that has been bound. None if it was told to stop meanwhile.
    fn take_in(
        self: &Arc<Self>,
        instance: InstanceKey,
        running: Arc<Running>,
        phases: StartPhases,
    ) -> Option<Arc<Running>> {
        self.with_started(Some(phases), |state| {
            let hosted = state.instances.get_mut(&instance)?;
            if hosted.is_stopped {
                state.instances.remove(&instance);
                state.pool.failed(instance, None, Instant::now());
                return None;
            }
            hosted.running = Some(running.clone());
            state.pool.started(instance, Instant::now());
            Some(running)
        })
    }

    fn fail(self: &Arc<Self>, instance: InstanceKey, cause: Option<protocol::CallError>) {
        self.with_state(|state| {
            state.instances.remove(&instance);
            state.pool.failed(instance, cause, Instant::now());
        });
        self.touched.notify_one();
    }
}

impl Hosted {
    /// Gives up its start, or lets it finish what it runs within `grace`.
    pub(crate) fn stop(&mut self, grace: Duration) {
        self.is_stopped = true;
        match &self.running {
            Some(running) => running.retire(grace),
            None => self.give_up.cancel(),
        }
    }
}

/// Counts a start as long as it is under way.
struct Starting<'a>(&'a watch::Sender<usize>);

impl<'a> Starting<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
