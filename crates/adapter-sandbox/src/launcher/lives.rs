//! What happens to instances: what their inits report, and how they end.

use std::io;

use rustix::event::epoll;

use super::{
    Attaching, Due, Launcher, Live, Phase, RELEASE_AGAIN, RELEASE_AT_LAST, births::collect,
};
use crate::{
    fault::Fault,
    sys,
    wire::{self, Event, Report, Status},
};

impl Launcher<'_> {
    /// Takes a report from an init.
    pub(super) fn hear(&mut self, slot: usize) {
        let Some(live) = &mut self.instances[slot] else { return };
        match wire::receive_now(&live.launched.socket, &mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Some((report, _))) => self.note(slot, report),
            // It has ended or is about to: its pidfd tells when.
            Ok(None) | Err(_) => {
                let _ = epoll::delete(&self.epoll, &live.launched.socket);
                self.kill(slot);
            }
        }
    }

    fn note(&mut self, slot: usize, report: Report) {
        let Some(live) = &mut self.instances[slot] else { return };
        let event = match report {
            Report::Built => return self.expect_worker(slot),
            Report::Started => {
                // Unless it was too late.
                if !matches!(live.phase, Phase::Starting) {
                    return;
                }
                live.phase = Phase::Running;
                if matches!(live.timer, Some((_, Due::Birth | Due::Start))) {
                    self.clear_timer(slot);
                }
                let Some(live) = &self.instances[slot] else { return };
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
        let setback = self.instances[slot].as_mut().and_then(|live| live.setback.take());
        self.tell(&event);
        if let Some(fault) = setback {
            self.warn_of_births(&fault);
        }
        self.end_without_worker(slot);
    }

    /// An init, and with it every process of its instance, is gone.
    pub(super) fn bury(&mut self, slot: usize) {
        let Some(live) = self.instances[slot].as_ref().filter(|live| live.is_there()) else {
            return;
        };
        // What it said last may still be unread, and is all that tells how its worker ended.
        for report in wire::last_words(&live.launched.socket, &mut self.buffer) {
            // There is nothing to fork a worker for.
            if !matches!(report, Report::Built) {
                self.note(slot, report);
            }
        }
        self.end_birth(slot);
        self.clear_timer(slot);
        let Some(live) = &mut self.instances[slot] else { return };
        let _ = epoll::delete(&self.epoll, &live.launched.socket);
        let _ = epoll::delete(&self.epoll, &live.launched.child.pidfd);
        let status = collect(&live.launched.child);
        live.ended_at = sys::now();
        let status = live.status.unwrap_or(status);
        self.ended.push_back((live.ended_at, slot));
        self.tell_end(slot, status);
    }

    /// Lets nobody wait any longer for an instance that was killed and does not end: a process of it
    /// is held up in the kernel. Its slot, and so its user and its groups, stay taken until it is
    /// gone; then they are released as ever.
    pub(super) fn give_up(&mut self, slot: usize) {
        let Some(live) = &self.instances[slot] else { return };
        let (id, seconds) = (live.id.clone(), self.end_patience.as_secs_f32());
        self.tell(&Event::Warning(format!(
            "`{id}` was killed {seconds} s ago and does not end, because a process of it is held up \
             in the kernel; what it holds is free again once it ends"
        )));
        self.tell_end(slot, Status::Unknown);
        if let Some(live) = &mut self.instances[slot] {
            live.is_given_up = true;
            let event = live.release(libc::ETIMEDOUT);
            self.tell(&event);
        }
    }

    /// Tells the daemon, once, that an instance has ended.
    fn tell_end(&mut self, slot: usize, status: Status) {
        let Some(live) = self.instances[slot].as_mut().filter(|live| !live.is_given_up) else {
            return;
        };
        if self.slots.get(&live.id) == Some(&slot) {
            self.slots.remove(&live.id);
        }
        let mut events = Vec::new();
        if let Attaching::Asked(request) = std::mem::replace(&mut live.attaching, Attaching::Done) {
            let fault = Fault::new("attach to what has ended", libc::ESRCH);
            events.push(Event::Attached { request, result: Err(fault) });
        }
        if matches!(live.phase, Phase::Running) {
            events.push(Event::Ended {
                id: live.id.clone(),
                status,
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
        if !live.is_given_up {
            self.tell(&live.release(libc::ECHILD));
        }
    }
}

impl Live {
    /// Whether it has not been buried.
    pub(super) fn is_there(&self) -> bool {
        self.ended_at.is_zero()
    }

    /// The last that the daemon hears of it. The error is for one that was killed before it started.
    fn release(&self, errno: i32) -> Event {
        let id = self.id.clone();
        match &self.phase {
            Phase::Running => Event::Released { id },
            Phase::Failed(fault) => Event::LaunchFailed { id, fault: fault.clone() },
            Phase::Starting => {
                let fault = Fault::new("start the instance: it was killed", errno);
                Event::LaunchFailed { id, fault }
            }
        }
    }
}
