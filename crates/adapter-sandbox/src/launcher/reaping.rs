//! Collects the launcher's children: inits, zygotes, the workers that these fork, and whatever else
//! becomes its child.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Pid,
};

use super::{Launcher, Live};
use crate::sys;

/// Who a child is.
enum Child {
    Init(usize),
    Worker(usize),
    Zygote(usize),
    /// A fork that its zygote has not told of, or that nobody wants any more; or a stranger.
    Other,
}

impl Launcher<'_> {
    /// Collects every child that has ended. What is known of it happens at once, since a status can
    /// be had only once.
    pub(super) fn collect_children(&mut self) {
        sys::drain(&self.signals);
        while let Some(pid) = sys::ended_child() {
            match self.who_is(pid) {
                Child::Init(slot) => self.bury(slot),
                Child::Worker(slot) => self.bury_worker(slot),
                Child::Zygote(place) => self.lose_zygote(place),
                Child::Other => {}
            }
            sys::collect_child(pid);
        }
    }

    fn who_is(&self, pid: Pid) -> Child {
        let lives = || self.instances.iter().enumerate();
        let is_init = |live: &Live| live.launched.child.pid == pid;
        let is_worker = |live: &Live| live.worker.as_ref().is_some_and(|worker| worker.pid == pid);
        let of = |is_it: &dyn Fn(&Live) -> bool| {
            // One that was collected has a number that may be another's by now.
            let is_it = |live: &Live| live.is_there() && is_it(live);
            lives().find(|(_, live)| live.as_ref().is_some_and(is_it)).map(|(slot, _)| slot)
        };
        if let Some(slot) = of(&is_init) {
            return Child::Init(slot);
        }
        if let Some(slot) = of(&is_worker) {
            return Child::Worker(slot);
        }
        self.zygotes.place_of(pid).map_or(Child::Other, Child::Zygote)
    }
}

/// Collects children until there are none. False if some are left when the time is over.
pub(super) fn collect_all(signals: &OwnedFd, patience: Duration) -> bool {
    let deadline = sys::now().saturating_add(patience);
    loop {
        sys::drain(signals);
        while let Some(pid) = sys::ended_child() {
            sys::collect_child(pid);
        }
        if !sys::has_children() {
            return true;
        }
        let left = deadline.saturating_sub(sys::now());
        if left.is_zero() {
            return false;
        }
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // Interrupted or not, the next round looks again.
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&left));
    }
}
