//! Types of Hearth's own HTTP API: what the commands and the daemon tell each other, as JSON.
//!
//! | | |
//! | --- | --- |
//! | `GET /v1/functions` | all functions: [`Function`] |
//! | `GET /v1/functions/{name}` | one |
//! | `DELETE /v1/functions/{name}` | removes it with everything it had |
//! | `POST /v1/functions/{name}/deployments` | deploys: `multipart/form-data` with the parts `settings` ([`DeployRequest`]) and `source` (a tar, plain or compressed with gzip or zstd); answers lines of [`DeployEvent`] |
//! | `DELETE /v1/functions/{name}/deployments/{id}` | cancels one that is under way |
//! | `PATCH /v1/functions/{name}/settings` | deploys what is deployed with other settings ([`SettingsPatch`]); answers lines of [`DeployEvent`] |
//! | `GET /v1/functions/{name}/logs` | lines of [`model::LogLine`]; query [`LogQuery`] |
//! | `GET /v1/instances` | what runs: [`Instance`] |
//! | `GET /v1/status` | the daemon: [`Status`] |
//!
//! Every request needs `authorization: Bearer <token>`. Lines are newline-delimited JSON. An error
//! is a [`Problem`] with a status of 400 or more. Not here: how any of it is done.

mod deploy;
mod report;

pub use deploy::{DeployEvent, DeployRequest, SettingName, SettingsPatch};
pub use report::{
    Deployment, DeploymentState, ErrorBody, Function, FunctionLoad, Instance, InstanceState,
    LogQuery, Problem, SettingsView, Status,
};

/// The header with which a caller asks for `Server-Timing`: `1`.
pub const TIMING_HEADER: &str = "x-hearth-timing";
/// The header in which every reply carries its id. Of a call, it is the one in the function's log.
pub const CALL_HEADER: &str = "x-hearth-call";
/// The header in which the answer to a deployment carries its id.
pub const DEPLOYMENT_HEADER: &str = "x-hearth-deployment";
/// The code of the problem that the daemon's machine lacks what was asked for.
pub const NOT_HERE: &str = "not-here";
/// The header in which a reply that is Hearth's own, since there is none of the function, carries
/// the code of its [`Problem`]. Functions cannot send it.
pub const ERROR_HEADER: &str = "x-hearth-error";
/// The Unix socket in a daemon's data directory, for its owner and root: the same HTTP as on its
/// port, with the same token.
pub const LOCAL_SOCKET: &str = "daemon.sock";
