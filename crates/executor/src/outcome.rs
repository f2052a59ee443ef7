//! What becomes of a call, for whoever made it.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use model::{InstanceId, Phases};

/// Why a call got no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// An instance, or the lack of one.
    #[error(transparent)]
    Call(#[from] protocol::CallError),
    /// There is no room for the call, and making some would hurt others. It ran nowhere.
    #[error("{why}")]
    Busy {
        /// What is full, as a sentence.
        why: String,
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// Instances of the function do not start or do not last; the next attempt comes later. The
    /// call ran nowhere.
    #[error("{cause}")]
    BackingOff {
        /// What happened to the last one.
        cause: protocol::CallError,
        /// When the next attempt is made.
        retry_after: Duration,
    },
}

/// How far a call has come. It can be read at any time, also after the call was given up.
#[derive(Debug, Default)]
pub struct Progress(Mutex<(Phases, Option<InstanceId>)>);

impl Progress {
    /// Where the time went so far.
    pub fn phases(&self) -> Phases {
        self.lock().0
    }

    /// The instance that the call was given to.
    pub fn instance(&self) -> Option<InstanceId> {
        self.lock().1.clone()
    }

    /// Changes the phases.
    pub fn note(&self, change: impl FnOnce(&mut Phases)) {
        change(&mut self.lock().0);
    }

    /// Says which instance the call was given to.
    pub fn given_to(&self, instance: InstanceId) {
        self.lock().1 = Some(instance);
    }

    fn lock(&self) -> MutexGuard<'_, (Phases, Option<InstanceId>)> {
        self.0.lock().expect("no panic while the lock is held")
    }
}
