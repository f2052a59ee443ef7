use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use model::FunctionName;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Deployments that are under way, for who wants to cancel one.
#[derive(Clone, Default)]
pub(crate) struct UnderWay(Arc<Mutex<HashMap<Uuid, Entry>>>);

struct Entry {
    function: FunctionName,
    cancelled: CancellationToken,
}

/// A deployment's place on the list; it goes when this is dropped.
pub(crate) struct Listed {
    list: UnderWay,
    id: Uuid,
    /// Cancelled once somebody does not want the deployment any more.
    pub(crate) cancelled: CancellationToken,
}

impl UnderWay {
    pub(crate) fn add(&self, function: FunctionName, id: Uuid) -> Listed {
        let cancelled = CancellationToken::new();
        self.lock().insert(id, Entry { function, cancelled: cancelled.clone() });
        Listed { list: self.clone(), id, cancelled }
    }

    /// False if there is no such deployment of the function, or none any more.
    pub(crate) fn cancel(&self, function: &FunctionName, id: Uuid) -> bool {
        let list = self.lock();
        let entry = list.get(&id).filter(|entry| entry.function == *function);
        entry.map(|entry| entry.cancelled.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Entry>> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.list.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_under_way_can_be_cancelled() {
        let (list, id) = (UnderWay::default(), Uuid::now_v7());
        let [hello, other] = ["hello", "other"].map(|name| name.parse().expect("a name"));
        assert!(!list.cancel(&hello, id), "it has not begun");
        let listed = list.add(hello.clone(), id);
        assert!(!list.cancel(&other, id), "another function's");
        assert!(!listed.cancelled.is_cancelled());
        assert!(list.cancel(&hello, id) && list.cancel(&hello, id), "twice is once");
        assert!(listed.cancelled.is_cancelled());
        drop(listed);
        assert!(!list.cancel(&hello, id), "it is over");
    }
}
