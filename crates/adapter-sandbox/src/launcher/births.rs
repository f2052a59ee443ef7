//! Workers that a zygote forks, until they are workers like any other.
//!
//! ```text
//! init: Built ──► asked ──► forked ──► confined ──► init: Started
//!                   └──────────┴─ failed, or took too long ──► started as a program
//! ```
//!
//! What fails here fails no launch: the init can start the worker by itself at every point.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::epoll,
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use super::{Due, Launcher, Phase, START, Source, status_of};
use crate::{
    fault::{Fault, Step},
    launch::Expected,
    sys::{self, Child},
    wire::{self, Event, Offer, Order, Status},
    zygote::{Asker, Process},
};

/// How long a fork and its way into the instance may take. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A worker on its way.
pub(super) struct Birth {
    expected: Expected,
    /// To the worker. None once it has been given up.
    channel: Option<OwnedFd>,
    /// Its zygote.
    place: usize,
}

impl Launcher<'_> {
    /// The instance is there, and its worker may come.
    pub(super) fn expect_worker(&mut self, slot: usize) {
        if self.ask_zygote(slot).is_err() {
            self.start_as_program(slot);
        }
    }

    fn ask_zygote(&mut self, slot: usize) -> Result<(), Fault> {
        let gone = || Fault::new("find the zygote", libc::ESRCH);
        let live = self.instances[slot].as_mut().ok_or_else(gone)?;
        let expected = live.launched.expected.take().ok_or_else(gone)?;
        let place = live.zygote.ok_or_else(gone)?;
        let process = self.zygotes.running(place).ok_or_else(gone)?;
        let (ours, theirs) = wire::pair().step("make a channel")?;
        process.ask(
            (slot, live.serial),
            (live.launched.child.pidfd.as_fd(), theirs.as_fd()),
            expected.group.as_ref(),
            &expected.groups,
        )?;
        // It will notice what it does not hear.
        let channel =
            epoll::add(&self.epoll, &ours, Source::Channel(slot).encode(), epoll::EventFlags::IN);
        let channel = channel.is_ok().then_some(ours);
        live.birth = Some(Birth { expected, channel, place });
        self.set_timer(slot, PATIENCE, Due::Birth);
        Ok(())
    }

    fn start_as_program(&mut self, slot: usize) {
        self.end_birth(slot);
        let Some(live) = &mut self.instances[slot] else { return };
        let is_starting = matches!(live.phase, Phase::Starting);
        if is_starting && wire::send(&live.launched.socket, &Order::Start, None).is_err() {
            self.kill(slot);
        }
    }

    /// Forgets that a worker was on its way.
    pub(super) fn end_birth(&mut self, slot: usize) {
        let Some(live) = &mut self.instances[slot] else { return };
        let Some(birth) = live.birth.take() else { return };
        if let Some(channel) = &birth.channel {
            let _ = epoll::delete(&self.epoll, channel);
        }
        if matches!(live.timer, Some((_, Due::Birth)) | None) {
            self.set_timer(slot, START, Due::Start);
        }
    }

    /// Takes an answer from a zygote.
    pub(super) fn heed(&mut self, place: usize) {
        let Some(process) = self.zygotes.running(place) else { return };
        match wire::receive_now(&process.socket, &mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Some((Offer::Ready, _))) => self.zygotes.set_ready(place),
            Ok(Some((Offer::Forked(pid), Some(pidfd)))) => {
                let asker = process.answered();
                if let (Some(asker), Some(pid)) = (asker, rustix::process::Pid::from_raw(pid)) {
                    self.take_child(asker, Child { pid, pidfd });
                }
            }
            Ok(Some((Offer::Failed(fault), _))) => {
                if let Some((slot, _)) = process.answered().filter(|asker| self.is_there(*asker)) {
                    self.note_setback(slot, fault);
                    self.start_as_program(slot);
                }
            }
            Ok(Some((Offer::Forked(_), None)) | None) | Err(_) => self.lose_zygote(place),
        }
    }

    /// Whether who asked is still who has this slot.
    fn is_there(&self, (slot, serial): Asker) -> bool {
        let live = self.instances.get(slot).and_then(Option::as_ref);
        live.is_some_and(|live| live.serial == serial)
    }

    fn take_child(&mut self, asker: Asker, child: Child) {
        let slot = asker.0;
        let is_there = self.is_there(asker);
        let Some(live) = self.instances.get_mut(slot).and_then(Option::as_mut) else {
            return discard(&child);
        };
        let source = Source::Worker(slot).encode();
        let heard = epoll::add(&self.epoll, &child.pidfd, source, epoll::EventFlags::IN);
        if !is_there || heard.is_err() {
            discard(&child);
            if is_there {
                self.start_as_program(slot);
            }
            return;
        }
        let filter = &self.workshop.filters.worker;
        if let Err(fault) = tell_worker(live.birth.as_ref(), filter) {
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            live.setback.get_or_insert(fault);
        }
        live.worker = Some(child);
    }

    /// Takes a word from a worker.
    pub(super) fn hear_worker(&mut self, slot: usize) {
        let Some(live) = &mut self.instances[slot] else { return };
        let Some(channel) = live.birth.as_ref().and_then(|birth| birth.channel.as_ref()) else {
            return;
        };
        match wire::receive_now(channel, &mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Some((wire::Birth::Ready(inside), _))) => {
                self.end_birth(slot);
                let Some(live) = &self.instances[slot] else { return };
                if wire::send(&live.launched.socket, &Order::Adopt(inside), None).is_err() {
                    self.kill(slot);
                }
            }
            Ok(Some((wire::Birth::Failed(fault), _))) => {
                self.note_setback(slot, fault);
                self.give_up_birth(slot);
            }
            Ok(None) | Err(_) => self.give_up_birth(slot),
        }
    }

    /// Wants this worker no more. It is started as a program once the forked one is gone.
    fn give_up_birth(&mut self, slot: usize) {
        let Some(live) = &mut self.instances[slot] else { return };
        let channel = live.birth.as_mut().and_then(|birth| birth.channel.take());
        if let Some(channel) = channel {
            let _ = epoll::delete(&self.epoll, &channel);
        }
        if let Some(worker) = &live.worker {
            let _ = pidfd_send_signal(&worker.pidfd, Signal::KILL);
        }
    }

    /// A worker takes too long.
    pub(super) fn hurry_birth(&mut self, slot: usize) {
        self.note_setback(slot, Fault::new("fork a worker", libc::ETIMEDOUT));
        // Should even its end take too long.
        self.set_timer(slot, START, Due::Start);
        let Some(live) = &self.instances[slot] else { return };
        match (&live.birth, &live.worker) {
            (Some(_), Some(_)) => self.give_up_birth(slot),
            (Some(birth), None) => self.lose_zygote(birth.place),
            (None, _) => {}
        }
    }

    /// A forked worker has ended.
    pub(super) fn bury_worker(&mut self, slot: usize) {
        // It may have become one just before.
        self.hear_worker(slot);
        let Some(live) = &mut self.instances[slot] else { return };
        let Some(worker) = live.worker.take() else { return };
        let _ = epoll::delete(&self.epoll, &worker.pidfd);
        let status = collect(&worker);
        if live.birth.is_some() {
            return self.start_as_program(slot);
        }
        live.status = Some(status);
        self.end_without_worker(slot);
    }

    /// The worker's end is its instance's, once the daemon has heard of its beginning.
    pub(super) fn end_without_worker(&mut self, slot: usize) {
        let Some(live) = &self.instances[slot] else { return };
        let has_ended = live.worker.is_none() && live.status.is_some();
        if live.zygote.is_some() && has_ended && matches!(live.phase, Phase::Running) {
            self.kill(slot);
        }
    }

    /// Starts a zygote that is wanted.
    pub(super) fn start_zygote(&mut self) {
        let started = self.zygotes.start_next(&mut self.workshop);
        let place = match started {
            None => return,
            Some(Ok(place)) => place,
            Some(Err(fault)) => return self.warn_of_births(&fault),
        };
        let Some(process) = self.zygotes.running(place) else { return };
        let source = Source::Zygote(place).encode();
        if epoll::add(&self.epoll, &process.socket, source, epoll::EventFlags::IN).is_err() {
            self.lose_zygote(place);
        }
    }

    /// Ends zygotes that nobody needs, and those that do not get ready.
    pub(super) fn tend_zygotes(&mut self) {
        let now = sys::now();
        while let Some(process) = self.zygotes.take_idle(now) {
            self.end_zygote(process);
        }
        while let Some(place) = self.zygotes.stuck(now) {
            self.lose_zygote(place);
        }
    }

    pub(super) fn lose_zygote(&mut self, place: usize) {
        let Some((process, is_first)) = self.zygotes.fail(place) else { return };
        if is_first {
            self.warn_of_births(&Fault::new("keep a zygote alive", libc::ECHILD));
        }
        for asker in self.end_zygote(process) {
            if self.is_there(asker) {
                self.start_as_program(asker.0);
            }
        }
    }

    fn end_zygote(&mut self, process: Process) -> impl IntoIterator<Item = Asker> + use<> {
        let _ = epoll::delete(&self.epoll, &process.socket);
        process.end()
    }

    /// Keeps why a worker could not be forked. That its instance was being stopped is no reason, so
    /// it counts once the instance runs all the same.
    fn note_setback(&mut self, slot: usize, fault: Fault) {
        if let Some(live) = &mut self.instances[slot] {
            live.setback.get_or_insert(fault);
        }
    }

    /// Once: what comes after it is slower, and works.
    pub(super) fn warn_of_births(&mut self, fault: &Fault) {
        if !std::mem::replace(&mut self.has_warned_of_births, true) {
            let text = format!("{fault}; workers are started as programs, which takes longer");
            self.tell(&Event::Warning(text));
        }
    }
}

/// Says what the instance is like. Fails, too, if nobody waits for the worker any more.
fn tell_worker(birth: Option<&Birth>, filter: &[libc::sock_filter]) -> Result<(), Fault> {
    let step = "describe the instance to its worker";
    let Some(Birth { expected, channel: Some(channel), .. }) = birth else {
        return Err(Fault::new(step, libc::ESRCH));
    };
    let (details, descriptors) = expected.worker.details(filter)?;
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let bytes = wire::encode(&details).step(step)?;
    wire::send_bytes(channel, &bytes, &descriptors).step(step)
}

/// A child that is of no use. It is collected like every other.
fn discard(child: &Child) {
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
}

/// What a child ended with. Unknown if it has not, or if it has been collected: never a wait.
pub(super) fn collect(child: &Child) -> Status {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    status_of(waitid(WaitId::PidFd(child.pidfd.as_fd()), options).ok().flatten())
}
