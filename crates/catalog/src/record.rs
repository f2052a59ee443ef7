use model::{FunctionName, Settings};
use uuid::Uuid;

use crate::Digest;

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: FunctionName,
    /// How it is served: the active deployment's settings.
    pub settings: Settings,
    /// The deployment that serves.
    pub active: Deployment,
    /// When its first active deployment was asked for, in milliseconds since 1970.
    pub created_at: u64,
    /// When its active deployment was asked for, in milliseconds since 1970.
    pub updated_at: u64,
}

/// An attempt to deploy a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub function: FunctionName,
    /// What became of it.
    pub state: DeploymentState,
    /// The runtime and its version, such as `python-3.11.2`.
    pub runtime: String,
    /// The file that defines the function.
    pub entrypoint: String,
    /// What was built, once it was.
    pub artifact: Option<Digest>,
    /// The artifact's size; 0 as long as there is none.
    pub artifact_bytes: u64,
    /// Why it failed.
    pub failure: Option<String>,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at: u64,
}

/// What became of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl DeploymentState {
    const ALL: [Self; 4] = [Self::Pending, Self::Active, Self::Superseded, Self::Failed];

    /// As it is written in the catalog and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A deployment that is about to be made.
#[derive(Clone, Debug)]
pub struct NewDeployment {
    /// Its id; different from every other one's.
    pub id: Uuid,
    /// Whose it is.
    pub function: FunctionName,
    /// The runtime and its version, such as `python-3.11.2`.
    pub runtime: String,
    /// The file that defines the function.
    pub entrypoint: String,
    /// How the function is to be served.
    pub settings: Settings,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at: u64,
}

/// A part of a function's log: one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose log.
    pub function: FunctionName,
    /// Which part; later ones have greater numbers.
    pub number: u64,
    /// When its first line was written, in milliseconds since 1970.
    pub first_at: u64,
    /// When its last line was written, in milliseconds since 1970.
    pub last_at: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many lines it has.
    pub lines: u64,
}
