//! The API's description, as OpenAPI: also checked in, as `docs/openapi.json`.

use utoipa::OpenApi;

/// The description as JSON.
pub fn openapi() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("plain data is JSON");
    text.push('\n');
    text
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hearth",
        description = "Deploys functions and tells about them. Functions themselves are called at \
                       `/fn/NAME/any/path`, or at `NAME.localhost`, without a token.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        functions, function, remove, deploy, cancel, set, logs, backup, instances, status, healthz,
        readyz, metrics
    ),
    components(schemas(api::DeployRequest, api::DeployEvent, api::Problem)),
    modifiers(&Guard)
)]
struct Document;

/// The token.
struct Guard;

impl utoipa::Modify for Guard {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", bearer);
    }
}

/// All functions, by name.
#[utoipa::path(get, path = "/v1/functions", security(("token" = [])), responses(
    (status = 200, description = "The functions, without their attempts to deploy", body = [api::Function]),
    (status = 401, description = "The token is missing or wrong", body = api::Problem)
))]
#[expect(dead_code, reason = "describes a route")]
fn functions() {}

/// One function.
#[utoipa::path(get, path = "/v1/functions/{name}", security(("token" = [])),
    params(("name" = String, Path, description = "The function's name")),
    responses(
        (status = 200, description = "The function", body = api::Function),
        (status = 401, description = "The token is missing or wrong", body = api::Problem),
        (status = 404, description = "There is no such function", body = api::Problem)
    )
)]
#[expect(dead_code, reason = "describes a route")]
fn function() {}

/// Removes a function with everything it had: deployments, artifacts, logs. Its running calls may
/// finish; the answer comes once nothing is left.
#[utoipa::path(delete, path = "/v1/functions/{name}", security(("token" = [])),
    params(("name" = String, Path, description = "The function's name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 401, description = "The token is missing or wrong", body = api::Problem),
        (status = 404, description = "There is no such function", body = api::Problem)
    )
)]
#[expect(dead_code, reason = "describes a route")]
fn remove() {}

/// A backup of everything but logs, as `hearth restore` takes it: a tar, compressed with zstd. It has
/// the functions' variables and the daemon's token. A reply that breaks off is no backup.
#[utoipa::path(get, path = "/v1/backup", security(("token" = [])), responses(
    (status = 200, description = "The backup", body = Vec<u8>, content_type = "application/zstd"),
    (status = 401, description = "The token is missing or wrong", body = api::Problem),
    (status = 429, description = "Another backup is being made", body = api::Problem)
))]
#[expect(dead_code, reason = "describes a route")]
fn backup() {}

/// What a deployment is made of.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes a form")]
struct DeployForm {
    /// How it is served; may be left out.
    settings: Option<api::DeployRequest>,
    /// The function's folder as a tar, plain or compressed with gzip or zstd.
    #[schema(value_type = String, format = Binary)]
    source: Vec<u8>,
}

/// Deploys a function. What served before serves on until the new deployment has been started
/// once; if it cannot be built or started, nothing changes.
#[utoipa::path(post, path = "/v1/functions/{name}/deployments", security(("token" = [])),
    params(("name" = String, Path, description = "The function's name")),
    request_body(content = DeployForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "Events, a line each; the last is `active` or `failed`", body = api::DeployEvent, content_type = "application/x-ndjson",
            headers(("x-hearth-deployment" = String, description = "The deployment's id"))),
        (status = 400, description = "The form is not one", body = api::Problem),
        (status = 401, description = "The token is missing or wrong", body = api::Problem),
        (status = 413, description = "The source is too large", body = api::Problem),
        (status = 429, description = "Too many deployments are under way", body = api::Problem),
        (status = 422, description = "The name, the runtime or the settings are not right", body = api::Problem),
        (status = 503, description = "This machine lacks the runtime, or the network", body = api::Problem)
    )
)]
#[expect(dead_code, reason = "describes a route")]
fn deploy() {}

/// Cancels a deployment that is under way. Its last event tells what became of it: if it was about
/// to serve already, it does.
#[utoipa::path(delete, path = "/v1/functions/{name}/deployments/{id}", security(("token" = [])),
    params(
        ("name" = String, Path, description = "The function's name"),
        ("id" = String, Path, description = "The deployment's id")
    ),
    responses(
        (status = 202, description = "It was told to end"),
        (status = 401, description = "The token is missing or wrong", body = api::Problem),
        (status = 404, description = "No such deployment is under way", body = api::Problem)
    )
)]
#[expect(dead_code, reason = "describes a route")]
fn cancel() {}

/// Changes settings: deploys what is deployed with other ones. What is left out stays as it is. What
/// served before serves on until an instance with the new settings has been started once.
#[utoipa::path(patch, path = "/v1/functions/{name}/settings", security(("token" = [])),
    params(("name" = String, Path, description = "The function's name")),
    request_body(content = api::SettingsPatch, content_type = "application/json"),
    responses(
        (status = 200, description = "Events, a line each; the last is `active` or `failed`", body = api::DeployEvent, content_type = "application/x-ndjson",
            headers(("x-hearth-deployment" = String, description = "The deployment's id"))),
        (status = 401, description = "The token is missing or wrong", body = api::Problem),
        (status = 404, description = "There is no such function", body = api::Problem),
        (status = 422, description = "The settings are not right", body = api::Problem),
        (status = 429, description = "Too many deployments are under way", body = api::Problem),
        (status = 503, description = "This machine lacks the network", body = api::Problem)
    )
)]
#[expect(dead_code, reason = "describes a route")]
fn set() {}

/// A function's log: what its calls and instances wrote, and how its calls ended.
#[utoipa::path(get, path = "/v1/functions/{name}/logs", security(("token" = [])),
    params(("name" = String, Path, description = "The function's name"), api::LogQuery),
    responses(
        (status = 200, description = "Lines with `at`, `call` and `event`, which is `entry` (`stream`, `text`), `note` (`text`) or `end` (`method`, `path`, `outcome`, `status`, `instance`, `error`, `phases` in microseconds)", body = Object, content_type = "application/x-ndjson"),
        (status = 401, description = "The token is missing or wrong", body = api::Problem),
        (status = 404, description = "There is no such function, or no such call in its log", body = api::Problem),
        (status = 422, description = "`call` is no part of an id, or one of several calls", body = api::Problem)
    )
)]
#[expect(dead_code, reason = "describes a route")]
fn logs() {}

/// What runs at the moment, spares included.
#[utoipa::path(get, path = "/v1/instances", security(("token" = [])), responses(
    (status = 200, description = "The instances", body = [api::Instance]),
    (status = 401, description = "The token is missing or wrong", body = api::Problem)
))]
#[expect(dead_code, reason = "describes a route")]
fn instances() {}

/// The daemon, and what its functions do.
#[utoipa::path(get, path = "/v1/status", security(("token" = [])), responses(
    (status = 200, description = "The daemon", body = api::Status),
    (status = 401, description = "The token is missing or wrong", body = api::Problem)
))]
#[expect(dead_code, reason = "describes a route")]
fn status() {}

/// Whether the daemon is alive.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It is")))]
#[expect(dead_code, reason = "describes a route")]
fn healthz() {}

/// Whether the daemon takes calls.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "It does"),
    (status = 503, description = "It is about to end")
))]
#[expect(dead_code, reason = "describes a route")]
fn readyz() {}

/// Metrics in the OpenMetrics text format, described in `docs/operations/metrics.md`. From this
/// machine without the token.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "The metrics", body = String, content_type = "application/openmetrics-text"),
    (status = 401, description = "From elsewhere it takes the token", body = api::Problem)
))]
#[expect(dead_code, reason = "describes a route")]
fn metrics() {}

#[cfg(test)]
mod tests {
    #[test]
    fn it_says_what_requests_are_like() {
        let document: serde_json::Value =
            serde_json::from_str(&super::openapi()).expect("it is JSON");
        let logs = &document["paths"]["/v1/functions/{name}/logs"]["get"]["parameters"];
        let mut found = Vec::new();
        for parameter in logs.as_array().into_iter().flatten() {
            let [name, place] = ["name", "in"].map(|key| parameter[key].as_str().unwrap_or("-"));
            let kind = parameter["schema"]["type"].as_str().unwrap_or("-");
            found.push((name, place, parameter["required"] == true, kind));
        }
        assert_eq!(
            found,
            [
                ("name", "path", true, "string"),
                ("call", "query", false, "string"),
                ("since", "query", false, "integer"),
                ("limit", "query", false, "integer"),
                ("follow", "query", false, "boolean"),
            ]
        );
        let settings = &document["components"]["schemas"]["SettingsPatch"]["properties"];
        for name in ["timeout", "idle", "memory", "cpus", "network"] {
            let pattern = settings[name]["pattern"].as_str().unwrap_or_default();
            assert!(pattern.contains('^') && pattern.contains('$'), "{name} may not be empty");
        }
    }

    #[test]
    fn the_description_that_is_checked_in_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, super::openapi()).expect("written");
            return;
        }
        assert!(
            checked_in == super::openapi(),
            "run UPDATE=1 cargo test -p platform the_description"
        );
    }
}
