use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A function, as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Where it is called.
    pub url: String,
    /// The deployment that serves, if there is one.
    pub active: Option<Deployment>,
    /// The last attempts to deploy, newest first, at most ten.
    pub deployments: Vec<Deployment>,
    /// How it is served.
    pub settings: SettingsView,
    /// What it does at the moment, and did since the daemon was started.
    pub load: FunctionLoad,
    /// When it was first deployed, in milliseconds since 1970.
    pub created_at: u64,
    /// When it was last deployed, in milliseconds since 1970.
    pub updated_at: u64,
}

/// One attempt to deploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    /// A UUID.
    pub id: String,
    /// What became of it.
    pub state: DeploymentState,
    /// The runtime and its version, such as `python-3.11.2`.
    pub runtime: String,
    /// The file that defines the function.
    pub entrypoint: String,
    /// The artifact: a SHA-256 in hexadecimal. Empty as long as there is none.
    pub artifact: String,
    /// The artifact's size in bytes, compressed.
    pub artifact_bytes: u64,
    /// Why it failed.
    pub failure: Option<String>,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at: u64,
}

/// What became of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeploymentState {
    /// It is being built or started.
    Pending,
    /// It serves.
    Active,
    /// Another one serves now.
    Superseded,
    /// It never served.
    Failed,
}

/// Settings for reading: variables by name only, since their values may be secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SettingsView {
    /// Names of the variables.
    pub environment: Vec<String>,
    /// Such as `15s`.
    pub timeout: String,
    /// Bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: f64,
    /// `egress`, `none`, `host` or `default`.
    pub network: String,
    /// Calls at once in one instance.
    pub concurrency: u32,
    /// Instances that are kept.
    pub min: u32,
    /// The most instances.
    pub max: u32,
    /// Such as `5m`.
    pub idle: String,
}

/// What a function does at the moment, and did since the daemon was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionLoad {
    /// The function.
    pub name: String,
    /// Instances that are being started.
    pub starting: u32,
    /// Instances that take calls.
    pub serving: u32,
    /// Calls that run.
    pub in_flight: u32,
    /// Calls that wait for an instance.
    pub waiting: u32,
    /// Calls that are over.
    pub calls: u64,
    /// Those of them that did not end with a reply of the function.
    pub errors: u64,
    /// Microseconds in the function, summed over all calls.
    pub busy_micros: u64,
    /// How often an instance was started.
    pub cold_starts: u64,
    /// Why its instances do not start, as long as they do not.
    pub trouble: Option<String>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// The function it serves; none if it is a spare.
    pub function: Option<String>,
    /// Its runtime.
    pub runtime: String,
    /// What it does.
    pub state: InstanceState,
    /// Calls that run in it.
    pub in_flight: u32,
    /// Calls it has taken.
    pub calls: u64,
    /// Seconds since it was started.
    pub age_seconds: f64,
    /// Seconds since its last call was over; 0 while one runs.
    pub idle_seconds: f64,
    /// Memory in use, in bytes, where the engine tells.
    pub memory_bytes: Option<u64>,
}

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// It waits to become some function's.
    Spare,
    /// It loads its function's code.
    Starting,
    /// It waits for calls.
    Idle,
    /// Calls run in it.
    Busy,
    /// It finishes what runs in it.
    Draining,
}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Hearth's version.
    pub version: String,
    /// Seconds since the daemon was started.
    pub uptime_seconds: f64,
    /// Functions that exist.
    pub functions: u64,
    /// Instances, spares included.
    pub instances: u32,
    /// Spares.
    pub spares: u32,
    /// The most instances, spares included.
    pub max_instances: u32,
    /// Bytes of the daemon's own memory.
    pub memory_bytes: u64,
    /// Functions that were called since the daemon was started.
    pub load: Vec<FunctionLoad>,
}

/// Which lines of a log are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Only what this call wrote: its id, or the beginning or the end of it if the log has no other
    /// call with the same.
    #[param(pattern = "^[0-9a-fA-F-]{1,36}$")]
    pub call: Option<String>,
    /// Only what was written since then: milliseconds since 1970.
    pub since: Option<u64>,
    /// The newest so many lines [default: 1000, at most 100000].
    pub limit: Option<usize>,
    /// Keep the answer open and send new lines as they come: `true` or `false`.
    #[param(required = false)]
    pub follow: bool,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The error.
    pub error: ErrorBody,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For programs, such as `unknown-function`.
    pub code: String,
    /// For people: what was wrong, and what to do.
    pub message: String,
}
