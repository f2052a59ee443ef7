//! What happens to instances: what their inits report, and how they end.

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use super::{
    Attaching, Launcher, Live, Phase, RELEASE_AGAIN, RELEASE_AT_LAST, births::collect, kill,
};
use crate::{
    fault::Fault,
    sys,
    wire::{self, Event, Report},
};

impl Launcher<'_> {
    /// Takes a report from an init.
    pub(super) fn hear(&mut self, slot: usize) {
        let Some(live) = &mut self.instances[slot] else { return };
        match wire::receive(&live.launched.socket, &mut self.buffer) {
            Ok(Some((report, _))) => self.note(slot, report),
            // It has ended or is about to: its pidfd tells when.
            Ok(None) | Err(_) => {
                let _ = epoll::delete(&self.epoll, &live.launched.socket);
                kill(&live.launched);
            }
        }
    }

    fn note(&mut self, slot: usize, report: Report) {
        let Some(live) = &mut self.instances[slot] else { return };
        let event = match report {
            Report::Built => return self.expect_worker(slot),
            Report::Started => {
                live.phase = Phase::Running;
                let pid = live.launched.child.pid.as_raw_nonzero().get().unsigned_abs();
                Event::Launched { id: live.id.clone(), pid }
            }
            Report::Failed(fault) => {
                live.phase = Phase::Failed(fault);
                return;
            }
            Report::Attached(result) => {
                match std::mem::replace(&mut live.attaching, Attaching::Done) {
                    Attaching::Asked(request) => Event::Attached { request, result },
                    Attaching::NotYet | Attaching::Done => return,
                }
            }
            Report::Ended(status) => {
                live.status = Some(status);
                return;
            }
        };
        let setback = live.setback.take();
        self.tell(&event);
        if let Some(fault) = setback {
            self.warn_of_births(&fault);
        }
        self.end_without_worker(slot);
    }

    /// An init, and with it every process of its instance, is gone.
    pub(super) fn bury(&mut self, slot: usize) {
        // What it said last may still be unread.
        while self.instances[slot].as_ref().is_some_and(has_words) {
            self.hear(slot);
        }
        self.end_birth(slot);
        let Some(live) = &mut self.instances[slot] else { return };
        let _ = epoll::delete(&self.epoll, &live.launched.socket);
        let _ = epoll::delete(&self.epoll, &live.launched.child.pidfd);
        let status = collect(&live.launched.child);
        live.ended_at = sys::now();
        if let Some(kill_at) = live.kill_at.take() {
            self.deadlines.remove(&(kill_at, slot));
        }
        self.slots.remove(&live.id);
        self.ended.push_back((live.ended_at, slot));
        let mut events = Vec::new();
        if let Attaching::Asked(request) = live.attaching {
            let fault = Fault::new("attach to what has ended", libc::ESRCH);
            events.push(Event::Attached { request, result: Err(fault) });
        }
        if matches!(live.phase, Phase::Running) {
            events.push(Event::Ended {
                id: live.id.clone(),
                status: live.status.unwrap_or(status),
                out_of_memory: live.launched.group.is_out_of_memory(),
            });
        }
        events.iter().for_each(|event| self.tell(event));
    }

    pub(super) fn release_next(&mut self) {
        let now = sys::now();
        let due = self.ended.pop_front_if(|(when, _)| *when <= now);
        let Some((_, slot)) = due else { return };
        let Some(live) = self.instances[slot].take() else { return };
        if let Err(error) = live.launched.group.remove() {
            if now < live.ended_at + RELEASE_AT_LAST {
                self.instances[slot] = Some(live);
                self.ended.push_back((now + RELEASE_AGAIN, slot));
                return;
            }
            self.tell(&Event::Warning(format!(
                "could not remove a cgroup of `{}`: {error}",
                live.id
            )));
        }
        let event = match live.phase {
            Phase::Running => Event::Released { id: live.id },
            Phase::Failed(fault) => Event::LaunchFailed { id: live.id, fault },
            Phase::Starting => Event::LaunchFailed {
                id: live.id,
                fault: Fault::new("start the instance: it was killed", libc::ECHILD),
            },
        };
        self.tell(&event);
    }
}

fn has_words(live: &Live) -> bool {
    let mut ready = [PollFd::new(&live.launched.socket, PollFlags::IN)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ready, Some(&zero)).is_ok()
        && ready[0].revents().contains(PollFlags::IN)
        && !ready[0].revents().contains(PollFlags::HUP)
}
