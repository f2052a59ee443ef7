use std::{fs::File, io::Write, sync::Arc, time::Duration};

use api::{DeployRequest, SettingsPatch};
use axum::{
    extract::{
        Multipart, Path, State,
        multipart::{Field, MultipartRejection},
        rejection::BytesRejection,
    },
    http::{HeaderValue, StatusCode},
    response::Response,
};
use bytes::Bytes;
use model::{FunctionName, Settings, describe};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{Shared, handlers::named, lines::lines, problem::Refusal};
use crate::{
    deploy::{Wish, Wished},
    platform::{DEPLOYMENTS_OF_ONE, Platform},
    store::{Scratch, StoreError},
    workshop::NotOffered,
};

/// The most bytes of a request's settings.
const MAX_SETTINGS: usize = 256 << 10;
const SETTINGS_TOO_LARGE: &str = "The settings are larger than 256 KiB.";
/// How long somebody may go on sending what has been refused.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Pieces of an upload are gathered up to this size before they go to the disk.
const PIECE: usize = 256 << 10;

/// Receives a source, then streams what becomes of it.
pub(super) async fn deploy(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response, Refusal> {
    let name: FunctionName =
        name.parse().map_err(|error: model::InvalidId| Refusal::invalid(format!("{error}")))?;
    let mut form = form.map_err(|error| bad_form(&error))?;
    let platform = &shared.platform;
    let received = match place(platform, &name) {
        Ok(places) => receive(platform, &mut form).await.map(|received| (received, places)),
        Err(refusal) => Err(refusal),
    };
    let ((request, archive), places) = match received {
        Ok(received) => received,
        Err(refusal) => {
            platform.tasks.spawn(timeout(PATIENCE, discard(form)));
            return Err(refusal);
        }
    };
    let earlier = platform.settings(&name).await?.unwrap_or_default();
    check_settings(platform, &name, &earlier, &request.settings)?;
    check_offer(platform, request.runtime.clone(), &request.settings).await?;
    let what = Wished::Source { archive, request };
    Ok(begin(platform, name, Wish { what, _places: places }))
}

/// Deploys what is deployed with other settings, and streams what becomes of it.
pub(super) async fn set(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let function = named(&name)?;
    let body = body.ok().filter(|body| body.len() <= MAX_SETTINGS);
    let body = body.ok_or_else(|| Refusal::invalid(SETTINGS_TOO_LARGE))?;
    let patch: SettingsPatch = serde_json::from_slice(&body).map_err(|error| wrong(&error))?;
    let platform = &shared.platform;
    let earlier = platform.settings(&function).await?;
    let earlier = earlier.ok_or_else(|| Refusal::unknown_function(&name))?;
    let places = place(platform, &function)?;
    check_settings(platform, &function, &earlier, &patch)?;
    check_offer(platform, None, &patch).await?;
    let what = Wished::Settings(patch);
    Ok(begin(platform, function, Wish { what, _places: places }))
}

fn begin(platform: &Arc<Platform>, name: FunctionName, wish: Wish) -> Response {
    let (id, events) = platform.deploy(name, wish);
    let mut response = lines(events);
    let id = HeaderValue::from_str(&id.to_string()).expect("a UUID is plain");
    response.headers_mut().insert(api::DEPLOYMENT_HEADER, id);
    response
}

/// Tells a deployment that is under way to end. What becomes of it is the last of its events.
pub(super) async fn cancel(
    State(shared): State<Shared>,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let function = named(&name)?;
    if id.parse().is_ok_and(|id| shared.platform.under_way.cancel(&function, id)) {
        return Ok(StatusCode::ACCEPTED);
    }
    let message = format!("No deployment `{id}` of `{name}` is under way; it may be over.");
    Err(Refusal::new(StatusCode::NOT_FOUND, "unknown-deployment", message))
}

/// A runtime or a network that cannot be had is the mistake of who asks for it, or a lack of this
/// machine, and not of the source.
async fn check_offer(
    platform: &Arc<Platform>,
    runtime: Option<String>,
    patch: &SettingsPatch,
) -> Result<(), Refusal> {
    // One that cannot be read is found out with the other settings.
    let network = patch.network.as_deref().and_then(|network| network.parse().ok());
    let asking = platform.clone();
    let asked = move || Ok(asking.workshop.offers(runtime.as_deref(), network));
    match platform.blocking(asked).await? {
        Ok(()) => Ok(()),
        Err(NotOffered::Unknown(why)) => Err(Refusal::invalid(why)),
        Err(NotOffered::Missing(why)) => {
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, api::NOT_HERE, why))
        }
    }
}

/// A place among the deployments of the function, and one among all.
fn place(platform: &Platform, name: &FunctionName) -> Result<[OwnedSemaphorePermit; 2], Refusal> {
    let of_one = platform.turn(name).deployments.clone().try_acquire_owned().map_err(|_| {
        Refusal::busy(&format!(
            "{DEPLOYMENTS_OF_ONE} deployments of `{name}` are under way, which is the most."
        ))
    })?;
    let of_all = platform.deployments.clone().try_acquire_owned().map_err(|_| {
        let most = platform.config.deployments;
        Refusal::busy(&format!("{most} deployments are under way, which is the most."))
    })?;
    Ok([of_one, of_all])
}

/// Reads what is left of a refused form: who is still sending would not see the refusal.
async fn discard(mut form: Multipart) {
    while let Ok(Some(mut field)) = form.next_field().await {
        while let Ok(Some(_)) = field.chunk().await {}
    }
}

/// Refuses changes that are mistakes by what the function's settings are now. They are made once the
/// deployment's turn comes, to what the settings are then.
fn check_settings(
    platform: &Platform,
    name: &FunctionName,
    earlier: &Settings,
    patch: &SettingsPatch,
) -> Result<(), Refusal> {
    let changed = patch.apply(earlier, &platform.config.machine);
    let settings = changed.map_err(|mistakes| Refusal::invalid(mistakes.join("; ")))?;
    let room = platform.room_beside(name);
    room.check(settings.scale.min).map_err(|error| Refusal::invalid(error.to_string()))
}

async fn receive(
    platform: &Arc<Platform>,
    form: &mut Multipart,
) -> Result<(DeployRequest, Scratch), Refusal> {
    let (mut request, mut archive) = (None, None);
    while let Some(mut field) = form.next_field().await.map_err(|error| bad_form(&error))? {
        match field.name() {
            Some("settings") if request.is_none() => {
                request = Some(read_request(&mut field).await?);
            }
            Some("source") if archive.is_none() => {
                archive = Some(save(platform, &mut field).await?);
            }
            other => {
                let other = other.unwrap_or("(without a name)");
                return Err(Refusal::invalid(format!(
                    "The form has a part `{other}`; it takes `settings` and `source`, once each."
                )));
            }
        }
    }
    let archive = archive.ok_or_else(|| {
        Refusal::invalid("The form has no part `source`: a tar of the function's folder.")
    })?;
    Ok((request.unwrap_or_default(), archive))
}

async fn read_request(field: &mut Field<'_>) -> Result<DeployRequest, Refusal> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(|error| bad_form(&error))? {
        if text.len() + piece.len() > MAX_SETTINGS {
            return Err(Refusal::invalid(SETTINGS_TOO_LARGE));
        }
        text.extend_from_slice(&piece);
    }
    serde_json::from_slice(&text).map_err(|error| wrong(&error))
}

fn wrong(error: &serde_json::Error) -> Refusal {
    Refusal::invalid(format!("The settings are not right: {error}."))
}

/// Writes the source to a file, in pieces, off the thread that serves calls.
async fn save(platform: &Arc<Platform>, field: &mut Field<'_>) -> Result<Scratch, Refusal> {
    let relieved = platform.clone();
    let relieve = move || {
        relieved.store.relieve();
        Ok(())
    };
    platform.blocking(relieve).await?;
    let scratch = platform.store.scratch();
    let path = scratch.path().to_path_buf();
    let failed = |source| StoreError::Files { step: "write", path: path.clone(), source };
    let mut file = File::create_new(&path).map_err(failed)?;
    let (mut gathered, mut total) = (Vec::new(), 0_u64);
    loop {
        let piece = field.chunk().await.map_err(|error| bad_form(&error))?;
        let is_last = piece.is_none();
        if let Some(piece) = piece {
            total += piece.len() as u64;
            if total > platform.config.upload_bytes {
                let mib = platform.config.upload_bytes >> 20;
                let message = format!(
                    "The source is larger than {mib} MiB; leave out what the build installs."
                );
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message));
            }
            gathered.extend_from_slice(&piece);
        }
        if is_last || gathered.len() >= PIECE {
            let (bytes, path) = (std::mem::take(&mut gathered), path.clone());
            file = platform
                .blocking(move || {
                    let failed = |source| StoreError::Files { step: "write", path, source };
                    file.write_all(&bytes).map_err(failed)?;
                    Ok(file)
                })
                .await?;
        }
        if is_last {
            return Ok(scratch);
        }
    }
}

fn bad_form(error: &dyn std::error::Error) -> Refusal {
    let message = format!(
        "The request is not a form (multipart/form-data) with the parts `settings` and `source`: \
         {}.",
        describe(error)
    );
    Refusal::new(StatusCode::BAD_REQUEST, "bad-form", message)
}
