use std::{error::Error, iter, mem};

use tracing::{info, warn};

/// Says once that something fails, and once that it works again.
pub(crate) struct Trouble {
    what: &'static str,
    is_known: bool,
}

impl Trouble {
    pub(crate) fn of(what: &'static str) -> Self {
        Self { what, is_known: false }
    }

    pub(crate) fn failed(&mut self, error: &(dyn Error + 'static)) {
        if !mem::replace(&mut self.is_known, true) {
            warn!(why = chain(error), "{} cannot be written for now", self.what);
        }
    }

    pub(crate) fn worked(&mut self) {
        if mem::take(&mut self.is_known) {
            info!("{} can be written again", self.what);
        }
    }
}

pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
