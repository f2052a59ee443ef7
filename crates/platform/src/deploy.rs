//! From an upload, or a change of settings, to a deployment that serves, or to a reason why not.
//!
//! ```text
//! queue ─► unpack ─► build ─► store ─► start ─► (activate in the catalog) ─► switch ─► retire
//! └──────────── fails: what served before serves on ────────────┘
//! ```
//!
//! Of one function's sources the newest is wanted: one that came earlier is given up if it does not
//! serve soon. Only what has something to build waits for a place among the builds.
//!
//! A change of settings is a deployment, too: of the artifact that serves. It skips what makes an
//! artifact, gives up no source that came earlier, and no source that comes later gives it up, so
//! none of them is lost. What settings become is found out in turn, from what they are by then.

use std::{
    fs::{self, File},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use api::{DeployEvent, DeployRequest, SettingsPatch};
use archive::UnpackLimits;
use catalog::{CatalogError, NewDeployment};
use executor::CallError;
use model::{FunctionName, Settings, describe};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    function::Current,
    platform::{Platform, Source, Turn},
    store::{Pin, Scratch, StoreError},
    workshop::Plan,
};

/// Events on their way to whoever deploys. A slow reader does not hold up the deployment: what is
/// printed meanwhile and does not fit is left out.
const EVENTS: usize = 1024;

/// Why a deployment failed that its deployer gave up.
const CANCELLED: &str = "it was cancelled";

/// How much longer a deployment may take once a newer one of its function waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is asked for.
pub(crate) struct Wish {
    pub(crate) what: Wished,
    /// Its places among the deployments under way: of its function, and of all.
    pub(crate) _places: [OwnedSemaphorePermit; 2],
}

/// What a deployment is made of.
pub(crate) enum Wished {
    /// A source that has been received.
    Source { archive: Scratch, request: DeployRequest },
    /// What serves already, with other settings.
    Settings(SettingsPatch),
}

impl Wished {
    fn patch(&self) -> &SettingsPatch {
        match self {
            Self::Source { request, .. } => &request.settings,
            Self::Settings(patch) => patch,
        }
    }
}

/// The step that failed, and why.
struct Failure {
    step: &'static str,
    why: String,
}

impl Platform {
    /// Deploys. It goes on even if nobody listens to its events, of which the last says how it
    /// ended, until it is cancelled by its id.
    pub(crate) fn deploy(
        self: &Arc<Self>,
        name: FunctionName,
        wish: Wish,
    ) -> (Uuid, mpsc::Receiver<DeployEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let (platform, id) = (self.clone(), Uuid::now_v7());
        let listed = self.under_way.add(name.clone(), id);
        let is_source = matches!(wish.what, Wished::Source { .. });
        let [stop, cancelled] = [self.stop.clone(), listed.cancelled.clone()];
        let turn = Wanted::begin(self.turn(&name), is_source, stop, cancelled);
        self.tasks.spawn(async move {
            let attempt = Attempt { platform: &platform, name: &name, id, events, turn };
            let last = match attempt.run(&wish.what).await {
                Ok(last) => last,
                Err(failure) => attempt.failed(failure).await,
            };
            drop(listed);
            // The last event waits for its place; whoever deploys may be gone.
            let _ = attempt.events.send_timeout(last, Duration::from_secs(30)).await;
        });
        (id, receiver)
    }
}

/// One attempt to deploy.
struct Attempt<'a> {
    platform: &'a Arc<Platform>,
    name: &'a FunctionName,
    id: Uuid,
    events: mpsc::Sender<DeployEvent>,
    turn: Wanted,
}

/// Whether a deployment is still wanted, as far as others of its function decide that.
#[derive(Clone)]
struct Wanted {
    turn: Arc<Turn>,
    /// Its number among the sources; none if it is none.
    number: Option<u64>,
    newest: watch::Receiver<u64>,
    /// Since when it is known that a newer one came.
    replaced_since: Option<Instant>,
    removals: watch::Receiver<u64>,
    stop: CancellationToken,
    /// Once its deployer does not want it any more.
    cancelled: CancellationToken,
}

impl Wanted {
    /// Sources that came earlier are not wanted for long any more if this is one.
    fn begin(
        turn: Arc<Turn>,
        is_source: bool,
        stop: CancellationToken,
        cancelled: CancellationToken,
    ) -> Self {
        let mut number = None;
        if is_source {
            turn.newest.send_modify(|newest| {
                *newest += 1;
                number = Some(*newest);
            });
        }
        // A removal that was asked for earlier has its turn first.
        let (newest, removals) = (turn.newest.subscribe(), turn.removals.subscribe());
        Self { turn, number, newest, replaced_since: None, removals, stop, cancelled }
    }

    /// Does what may take minutes only as long as it is wanted.
    async fn unless_given_up<T>(
        &mut self,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let Self { number, newest, replaced_since, removals, stop, cancelled, .. } = self;
        let is_replaced = async {
            // The sender lives in the turn, so this cannot fail.
            let is_newer = |newest: &u64| number.is_some_and(|number| *newest > number);
            let _ = newest.wait_for(is_newer).await;
            let since = *replaced_since.get_or_insert_with(Instant::now);
            tokio::time::sleep_until(since + PATIENCE).await;
        };
        tokio::select! {
            biased;
            Ok(()) = removals.changed() => Err("the function was removed meanwhile".into()),
            () = is_replaced => Err("a newer deployment of the function came meanwhile".into()),
            () = cancelled.cancelled() => Err(CANCELLED.into()),
            () = stop.cancelled() => Err("the daemon was stopped meanwhile".into()),
            outcome = work => outcome,
        }
    }
}

impl Attempt<'_> {
    async fn run(&self, wished: &Wished) -> Result<DeployEvent, Failure> {
        let mut turn = self.turn.clone();
        let settle = async {
            let changing = self.my_turn().await?;
            Ok((changing, self.settings(wished.patch()).await?))
        };
        let (_changing, settings) = self.step("queue", turn.unless_given_up(settle)).await?;
        let (plan, pin) = match wished {
            Wished::Source { archive, request } => {
                self.make(archive, request, &settings, &mut turn).await?
            }
            Wished::Settings(_) => self.reuse(&settings).await?,
        };
        let start = self.start(&plan, pin, &settings, &mut turn);
        let current = self.step("start", start).await?;
        self.switch(current).await
    }

    /// Makes an artifact of a source.
    async fn make(
        &self,
        archive: &Scratch,
        request: &DeployRequest,
        settings: &Settings,
        turn: &mut Wanted,
    ) -> Result<(Plan, Pin), Failure> {
        let unpack = turn.unless_given_up(async {
            let _place = self.platform.builds.files().await;
            self.unpack(archive, request, settings).await
        });
        let (plan, source) = self.step("unpack", unpack).await?;
        let build = turn.unless_given_up(self.build(&plan, &source));
        self.step("build", build).await?;
        let store = async {
            let _place = self.platform.builds.files().await;
            self.store(source).await
        };
        let pin = self.step("store", store).await?;
        Ok((plan, pin))
    }

    /// Takes the artifact that serves, and notes the attempt.
    async fn reuse(&self, settings: &Settings) -> Result<(Plan, Pin), Failure> {
        let (platform, name, id) = (self.platform.clone(), self.name.clone(), self.id);
        let settings = settings.clone();
        let work = move || {
            let Some(function) = platform.catalog.function(&name)? else {
                return Ok(Err("there is no such function any more"));
            };
            let catalog::Deployment { runtime, entrypoint, artifact, artifact_bytes, .. } =
                function.active;
            let Some(artifact) = artifact else {
                return Ok(Err("the function has no artifact; deploy its source again"));
            };
            // Pinned before anything else could need its place.
            let pin = platform.store.pin(&artifact);
            platform.store.restore(&artifact, &*platform.workshop)?;
            platform.catalog.begin(&NewDeployment {
                id,
                function: name,
                runtime: runtime.clone(),
                entrypoint: entrypoint.clone(),
                settings,
                created_at: now(),
            })?;
            platform.catalog.set_artifact(id, &artifact, artifact_bytes)?;
            Ok(Ok((Plan { runtime, entrypoint }, pin)))
        };
        let taken = self.platform.blocking(work).await;
        let failed = |why| Failure { step: "store", why };
        taken.map_err(|error| failed(describe(&error)))?.map_err(|why| failed(why.into()))
    }

    /// The function's settings with the changes that are asked for.
    async fn settings(&self, patch: &SettingsPatch) -> Result<Settings, String> {
        let earlier = self.platform.settings(self.name).await.map_err(|error| describe(&error))?;
        let changed = patch.apply(&earlier.unwrap_or_default(), &self.platform.config.machine);
        changed.map_err(|mistakes| mistakes.join("; "))
    }

    /// Whoever came earlier has changed the function, or is given up.
    async fn my_turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, String> {
        Ok(self.turn.turn.lock.lock().await)
    }

    /// Unpacks the source, tells what it is, and notes the attempt.
    async fn unpack(
        &self,
        archive: &Scratch,
        request: &DeployRequest,
        settings: &Settings,
    ) -> Result<(Plan, Scratch), String> {
        let (platform, source) = (self.platform.clone(), self.platform.store.scratch());
        let archive = archive.path().to_path_buf();
        let DeployRequest { runtime, entrypoint, .. } = request.clone();
        let new = {
            let (id, function) = (self.id, self.name.clone());
            let (settings, created_at) = (settings.clone(), now());
            move |plan: &Plan| NewDeployment {
                id,
                function,
                runtime: plan.runtime.clone(),
                entrypoint: plan.entrypoint.clone(),
                settings,
                created_at,
            }
        };
        let work = move || {
            let failed = |cause| StoreError::Files {
                step: "unpack into",
                path: source.path().to_path_buf(),
                source: cause,
            };
            fs::create_dir(source.path()).map_err(failed)?;
            let packed = File::open(&archive).map_err(failed)?;
            archive::unpack(packed, source.path(), &UnpackLimits::default())?;
            let workshop = &platform.workshop;
            let plan =
                workshop.examine(source.path(), runtime.as_deref(), entrypoint.as_deref())?;
            platform.catalog.begin(&new(&plan))?;
            Ok((plan, source))
        };
        self.platform.blocking(work).await.map_err(|error| describe(&error))
    }

    async fn build(&self, plan: &Plan, source: &Scratch) -> Result<(), String> {
        let Platform { workshop, builds, .. } = &**self.platform;
        if !workshop.has_build(plan, source.path()) {
            return Ok(());
        }
        let events = self.events.clone();
        let output = move |text: String| {
            let _ = events.try_send(DeployEvent::Output { text });
        };
        let built = builds.run(&output, workshop.build(plan, source.path(), &output)).await;
        built.map_err(|error| error.to_string())
    }

    async fn store(&self, source: Scratch) -> Result<Pin, String> {
        let (platform, id) = (self.platform.clone(), self.id);
        let work = move || {
            let (pin, bytes) = platform.store.keep(&source, &*platform.workshop)?;
            platform.catalog.set_artifact(id, pin.artifact(), bytes)?;
            Ok(pin)
        };
        self.platform.blocking(work).await.map_err(|error| describe(&error))
    }

    /// Serves the new deployment beside the old one, until it has been bound once. If that is given
    /// up or fails, what was being started is ended at once: code may take long to load.
    async fn start(
        &self,
        plan: &Plan,
        pin: Pin,
        settings: &Settings,
        turn: &mut Wanted,
    ) -> Result<Current, String> {
        let log = self.platform.logs.function(self.name);
        let source = Source {
            runtime: &plan.runtime,
            entrypoint: &plan.entrypoint,
            tree: self.platform.store.tree(pin.artifact()),
        };
        // Others may have been deployed since this one was accepted.
        let room = self.platform.room_beside(self.name);
        let earlier = self.platform.active(self.name.as_str()).map(|active| active.current());
        let _yielding = earlier
            .filter(|earlier| room.is_all_kept_with(earlier.settings.scale.min))
            .map(Yielding::of);
        room.check(settings.scale.min).map_err(|error| error.to_string())?;
        let service = self.platform.serve(self.name, settings, source, &log)?;
        let deadline = Instant::now() + self.platform.config.start_timeout;
        let ready = async {
            service.ready(deadline).await.map_err(|error| match error {
                CallError::Call(protocol::CallError::TimedOut) => format!(
                    "its first instance did not start within {:?}",
                    self.platform.config.start_timeout
                ),
                error => error.to_string(),
            })
        };
        if let Err(why) = turn.unless_given_up(ready).await {
            service.retire(Duration::ZERO).await;
            return Err(why);
        }
        Ok(Current { settings: settings.clone(), service: Ok(service), _pin: Some(pin) })
    }

    /// The new one serves from here on; whatever happens, the catalog says the same.
    async fn switch(&self, current: Current) -> Result<DeployEvent, Failure> {
        let (platform, id) = (self.platform.clone(), self.id);
        let activated = self.platform.blocking(move || Ok(platform.catalog.activate(id)?)).await;
        let function = match activated {
            Ok(function) => function,
            Err(error) => {
                self.platform.retire(Arc::new(current)).await;
                return Err(Failure { step: "activate", why: describe(&error) });
            }
        };
        let log = self.platform.logs.function(self.name);
        if let Some(earlier) = self.platform.put(self.name.clone(), log, current) {
            self.clean_up_after(earlier);
        }
        info!(function = %self.name, deployment = %self.id, "deployed");
        let deployment = Box::new(crate::report::deployment(&function.active));
        Ok(DeployEvent::Active { deployment, url: self.platform.url_of(self.name) })
    }

    /// Lets the calls of the deployment that was replaced finish, then removes its artifact.
    fn clean_up_after(&self, earlier: Arc<Current>) {
        let platform = self.platform.clone();
        self.platform.tasks.spawn(async move {
            platform.retire(earlier).await;
            let sweeping = platform.clone();
            let swept = platform.blocking(move || sweeping.store.sweep(&sweeping.catalog)).await;
            if let Err(error) = swept {
                warn!(error = describe(&error), "could not remove what is not needed any more");
            }
        });
    }

    async fn failed(&self, Failure { step, why }: Failure) -> DeployEvent {
        info!(function = %self.name, deployment = %self.id, step, why, "a deployment failed");
        let (platform, id) = (self.platform.clone(), self.id);
        let note = format!("{step}: {why}");
        let noted = self
            .platform
            .blocking(move || {
                match platform.catalog.fail(id, &note) {
                    // It failed before the catalog knew of it.
                    Err(CatalogError::UnknownDeployment(_)) => {}
                    noted => noted?,
                }
                platform.store.sweep(&platform.catalog)
            })
            .await;
        if let Err(error) = noted {
            warn!(error = describe(&error), "could not note a failed deployment");
        }
        DeployEvent::Failed { step: step.into(), message: why }
    }

    async fn step<T>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, Failure> {
        self.say(step);
        work.await.map_err(|why| Failure { step, why })
    }

    fn say(&self, step: &str) {
        let _ = self.events.try_send(DeployEvent::Step { step: step.into() });
    }
}

/// A deployment that serves keeps one instance less than usual, so that its successor finds a place
/// on a host where every place is kept.
struct Yielding(Arc<Current>);

impl Yielding {
    fn of(current: Arc<Current>) -> Self {
        if let Ok(service) = &current.service {
            service.keep(current.settings.scale.min.saturating_sub(1));
        }
        Self(current)
    }
}

impl Drop for Yielding {
    fn drop(&mut self) {
        if let Ok(service) = &self.0.service {
            service.keep(self.0.settings.scale.min);
        }
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
