//! The thread that writes.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fs, io,
    iter::Peekable,
    sync::{Arc, mpsc::SyncSender},
};

use model::{FunctionName, LogEvent, LogLine};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    Follower, FunctionLog, LogError,
    files::{self, OpenFiles},
    function::Batch,
    index::Index,
    journal::{Chunk, Disk, Journal},
    store::{Followed, Order, Shared},
    trouble::{Trouble, chain},
};

/// So many functions are swept at a time, so that lines do not wait for a sweep of thousands.
const SWEPT_AT_ONCE: usize = 16;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    /// Of functions that were written lately.
    journals: HashMap<FunctionName, Journal>,
    /// Functions whose files are still to be looked at.
    sweep: VecDeque<FunctionName>,
    sweep_due: Instant,
    trouble: Trouble,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let limits = shared.limits.clone();
        let files = OpenFiles::new(shared.root.clone(), limits.open_files);
        let index = Index::spawn(shared.catalog.clone(), limits.index_every)?;
        Ok(Self {
            disk: Disk { files, index, limits },
            journals: HashMap::new(),
            sweep: VecDeque::new(),
            // At once: the daemon may have been off for long.
            sweep_due: Instant::now(),
            trouble: Trouble::of("functions' logs"),
            shared,
        })
    }

    pub(crate) fn run(mut self) {
        let end = loop {
            let work = self.shared.next(self.due());
            for function in work.functions {
                self.write(&function);
            }
            if let Some(end) = work.orders.into_iter().find_map(|order| self.obey(order)) {
                break end;
            }
            self.sweep_some(Instant::now());
        };
        self.shared.functions().values().for_each(|function| function.stop_following());
        drop(self);
        // Whoever wanted that may have stopped waiting.
        let _ = end.send(());
    }

    /// When there is something to do even if nobody asks for it.
    fn due(&self) -> Instant {
        if self.sweep.is_empty() { self.sweep_due } else { Instant::now() }
    }

    fn write(&mut self, function: &Arc<FunctionLog>) {
        let mut batch = function.take();
        if batch.left_out > 0 {
            let at = (self.shared.clock)();
            let text = format!(
                "{} lines were left out: too many at once, or no room on the disk",
                batch.left_out
            );
            batch.lines.push(LogLine { at, call: None, event: LogEvent::Note { text } });
        }
        if let Some(followers) = &batch.followers {
            for line in &batch.lines {
                // Whoever followed may be gone by now.
                let _ = followers.send(Arc::new(line.clone()));
            }
        }
        let lost = batch.lines.len() - self.store(function.name(), &batch);
        let unsaid = if lost > 0 { batch.left_out } else { 0 };
        function.done(&batch, lost - usize::from(unsaid > 0), unsaid);
    }

    /// Writes lines, as far as they can be written: how many that is.
    fn store(&mut self, name: &FunctionName, batch: &Batch) -> usize {
        let mut stored = 0;
        let mut lines = batch.lines.iter().peekable();
        while lines.peek().is_some() {
            match self.store_some(name, &mut lines) {
                Ok(number) => stored += number,
                Err(error) => {
                    self.trouble.failed(&error);
                    break;
                }
            }
            self.trouble.worked();
        }
        stored
    }

    /// Writes as many lines as fit into one file.
    fn store_some<'a>(
        &mut self,
        name: &FunctionName,
        lines: &mut Peekable<impl Iterator<Item = &'a LogLine>>,
    ) -> Result<usize, LogError> {
        let failed = |source| LogError::Files { step: "write", source };
        let journal = load(&mut self.journals, &self.disk, &self.shared, name)?;
        journal.expire(&mut self.disk, (self.shared.clock)()).map_err(failed)?;
        let mut chunk = Chunk::default();
        let mut room = journal.room(&self.disk.limits);
        while lines.next_if(|line| chunk.add(line, room)).is_some() {
            // A first line that does not fit goes into the next file, with what fits there.
            room = if chunk.size() > room { self.disk.limits.segment_bytes } else { room };
        }
        journal.append(&mut self.disk, &chunk).map_err(failed)?;
        Ok(chunk.lines())
    }

    /// Whom to tell at the end, if that was the order.
    fn obey(&mut self, order: Order) -> Option<SyncSender<()>> {
        // Whoever gave an order may have stopped waiting for the answer.
        match order {
            Order::Flush(reply) => _ = reply.send(()),
            Order::Follow(function, reply) => _ = reply.send(self.follow(&function)),
            Order::Remove(name, reply) => _ = reply.send(self.remove(&name)),
            Order::End(reply) => return Some(reply),
        }
        None
    }

    fn follow(&mut self, function: &FunctionLog) -> Result<Followed, LogError> {
        let position =
            load(&mut self.journals, &self.disk, &self.shared, function.name())?.position();
        Ok((position, Follower::new(function.follow(), self.shared.clock.clone())))
    }

    fn remove(&mut self, name: &FunctionName) -> Result<(), LogError> {
        self.disk.files.close(name);
        self.journals.remove(name);
        match fs::remove_dir_all(files::directory(&self.shared.root, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LogError::Files { step: "remove", source: error });
            }
            _ => {}
        }
        Ok(self.disk.index.forget(name)?)
    }

    fn sweep_some(&mut self, now: Instant) {
        if self.sweep.is_empty() && self.sweep_due <= now {
            self.sweep_due = now + self.shared.limits.sweep_every;
            match files::functions(&self.shared.root) {
                Ok(functions) => self.sweep.extend(functions),
                Err(error) => warn!(%error, "could not list functions' logs"),
            }
        }
        let number = SWEPT_AT_ONCE.min(self.sweep.len());
        for name in self.sweep.drain(..number).collect::<Vec<_>>() {
            if let Err(error) = self.sweep_one(&name) {
                let why = chain(&error);
                warn!(function = %name, %why, "could not look for old lines");
            }
        }
    }

    fn sweep_one(&mut self, name: &FunctionName) -> Result<(), LogError> {
        let failed = |source| LogError::Files { step: "sweep", source };
        let journal = load(&mut self.journals, &self.disk, &self.shared, name)?;
        journal.expire(&mut self.disk, (self.shared.clock)()).map_err(failed)?;
        // What was not written lately need not stay in memory.
        if !self.disk.files.is_open(name) {
            let is_empty = journal.is_empty();
            self.journals.remove(name);
            if is_empty {
                // It fails if there is something else in it, which is not ours to remove.
                let _ = fs::remove_dir(files::directory(&self.shared.root, name));
            }
        }
        Ok(())
    }
}

fn load<'a>(
    journals: &'a mut HashMap<FunctionName, Journal>,
    disk: &Disk,
    shared: &Shared,
    name: &FunctionName,
) -> Result<&'a mut Journal, LogError> {
    match journals.entry(name.clone()) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => Ok(entry.insert(Journal::load(disk, &*shared.catalog, name)?)),
    }
}
