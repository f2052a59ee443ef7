use std::{
    collections::{HashMap, VecDeque},
    io,
};

use catalog::{Catalog, Segment};
use model::{FunctionName, LogLine};

use crate::{
    LogError, LogLimits,
    files::{self, OpenFiles},
    index::Index,
    read::Position,
    scan,
};

/// The files of one function, as the writer knows them.
pub(crate) struct Journal {
    name: FunctionName,
    /// Oldest first.
    closed: VecDeque<Segment>,
    /// The one that is added to.
    tail: Option<Segment>,
    next_number: u64,
}

/// What journals are written with.
pub(crate) struct Disk {
    pub(crate) files: OpenFiles,
    pub(crate) index: Index,
    pub(crate) limits: LogLimits,
}

/// Lines that are written at once.
#[derive(Default)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    lines: usize,
    first_at: u64,
    last_at: u64,
}

impl Chunk {
    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    pub(crate) fn size(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Adds a line, unless the chunk would become larger than `room`; a first line always.
    pub(crate) fn add(&mut self, line: &LogLine, room: u64) -> bool {
        let before = self.bytes.len();
        serde_json::to_writer(&mut self.bytes, line).expect("plain data becomes JSON");
        self.bytes.push(b'\n');
        if self.lines > 0 && self.size() > room {
            self.bytes.truncate(before);
            return false;
        }
        self.first_at = if self.lines == 0 { line.at } else { self.first_at.min(line.at) };
        self.last_at = self.last_at.max(line.at);
        self.lines += 1;
        true
    }
}

impl Journal {
    /// Finds out what there is: by the index, and by the files where the index is wrong.
    pub(crate) fn load(
        disk: &Disk,
        catalog: &dyn Catalog,
        name: &FunctionName,
    ) -> Result<Self, LogError> {
        let failed = |source| LogError::Files { step: "look into", source };
        let numbers = files::numbers(disk.files.root(), name).map_err(failed)?;
        let next_number = numbers.last().map_or(1, |last| last + 1);
        // A function's first line does not wait for whatever the catalog does at the moment.
        let indexed = if numbers.is_empty() { Vec::new() } else { catalog.segments(name, 0)? };
        let mut indexed: HashMap<_, _> =
            indexed.into_iter().map(|segment| (segment.number, segment)).collect();
        let mut closed = VecDeque::new();
        for number in numbers {
            let known = indexed.remove(&number);
            closed.extend(disk.segment(name, number, known).map_err(failed)?);
        }
        indexed.keys().for_each(|number| disk.index.remove(name, *number));
        let tail = closed.pop_back();
        Ok(Self { name: name.clone(), closed, tail, next_number })
    }

    /// How many bytes may be added to the current file.
    pub(crate) fn room(&self, limits: &LogLimits) -> u64 {
        limits.segment_bytes.saturating_sub(self.tail.as_ref().map_or(0, |tail| tail.bytes))
    }

    /// Adds lines, in the next file if they do not fit into this one. All of them, or none.
    pub(crate) fn append(&mut self, disk: &mut Disk, chunk: &Chunk) -> io::Result<()> {
        if self.tail.is_some() && chunk.size() > self.room(&disk.limits) {
            self.rotate(disk)?;
        }
        let mut tail = self.tail.clone().unwrap_or_else(|| Segment {
            function: self.name.clone(),
            number: self.next_number,
            first_at: chunk.first_at,
            last_at: 0,
            bytes: 0,
            lines: 0,
        });
        disk.files.append(&self.name, tail.number, tail.bytes, &chunk.bytes)?;
        self.next_number = tail.number + 1;
        tail.last_at = tail.last_at.max(chunk.last_at);
        tail.bytes += chunk.size();
        tail.lines += u64::try_from(chunk.lines).unwrap_or(0);
        disk.index.put(&tail);
        self.tail = Some(tail);
        Ok(())
    }

    /// Ends the current file, and makes room for the next one.
    fn rotate(&mut self, disk: &mut Disk) -> io::Result<()> {
        disk.files.close(&self.name);
        self.closed.extend(self.tail.take());
        let mut size: u64 = self.closed.iter().map(|segment| segment.bytes).sum();
        let most = disk.limits.per_function_bytes.saturating_sub(disk.limits.segment_bytes);
        while size > most
            && let Some(oldest) = self.closed.front()
        {
            size -= oldest.bytes;
            self.remove_oldest(disk)?;
        }
        Ok(())
    }

    /// Removes files whose lines are all too old, and ends the current one once its lines differ
    /// in age by an eighth of what they may reach.
    pub(crate) fn expire(&mut self, disk: &mut Disk, now: u64) -> io::Result<()> {
        let age = u64::try_from(disk.limits.age.as_millis()).unwrap_or(u64::MAX);
        let is_long = |tail: &Segment| now.saturating_sub(tail.first_at) > age / 8;
        if self.tail.as_ref().is_some_and(is_long) {
            self.rotate(disk)?;
        }
        let is_old = |segment: &Segment| now.saturating_sub(segment.last_at) > age;
        while self.closed.front().is_some_and(is_old) {
            self.remove_oldest(disk)?;
        }
        Ok(())
    }

    fn remove_oldest(&mut self, disk: &Disk) -> io::Result<()> {
        if let Some(oldest) = self.closed.front() {
            files::remove(&files::path(disk.files.root(), &self.name, oldest.number))?;
            disk.index.remove(&self.name, oldest.number);
            self.closed.pop_front();
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.tail.is_none()
    }

    pub(crate) fn position(&self) -> Position {
        match &self.tail {
            Some(tail) => Position { number: tail.number, bytes: tail.bytes },
            None => Position { number: self.next_number - 1, bytes: u64::MAX },
        }
    }
}

impl Disk {
    /// What is in a file, of which the index may know; nothing is left of one without a whole line.
    fn segment(
        &self,
        name: &FunctionName,
        number: u64,
        known: Option<Segment>,
    ) -> io::Result<Option<Segment>> {
        let path = files::path(self.files.root(), name, number);
        if let Some(segment) = &known
            && scan::is_as_indexed(&path, segment)?
        {
            return Ok(known);
        }
        let segment = scan::segment(&path, name, number)?;
        match &segment {
            Some(segment) => self.index.put(segment),
            None => self.index.remove(name, number),
        }
        Ok(segment)
    }
}
