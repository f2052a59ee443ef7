//! What instances of one runtime share: the host's programs, the runtime's files and a little
//! configuration, as layers of the root file system that each of them has for itself (`root`).

use std::{
    collections::VecDeque,
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use model::{LaunchSpec, Network};
use rustix::mount::{UnmountFlags, unmount};

use crate::{
    fault::{Fault, Step},
    mounts::detached_copy,
    nameservers::Nameservers,
    root::{Layout, Root, overlay_of_devices},
};

mod builder;
mod snapshot;

use builder::Builder;
use snapshot::Snapshot;

/// Unused ones are forgotten beyond this; a host seldom has more runtimes.
const MOST: usize = 64;

/// The templates in use, each mounted below one directory.
pub(crate) struct Templates {
    directory: PathBuf,
    host: Host,
    built: Vec<Template>,
    serial: u64,
    warnings: VecDeque<String>,
}

/// What templates are made for.
pub(crate) struct Host {
    pub(crate) nameservers: Nameservers,
    /// Whether device nodes may be made: by the host's root.
    pub(crate) is_root: bool,
    /// Whether instances may have overlays, in their user namespaces.
    pub(crate) has_overlays: bool,
}

struct Template {
    key: Key,
    path: PathBuf,
    layout: Rc<Layout>,
    snapshot: Snapshot,
    /// Whether it has device nodes of its own. If not, the host's are among its parts.
    has_devices: bool,
}

/// What makes two launches share a template. Directories are known by inode, too: one may be
/// replaced by another of the same name.
#[derive(PartialEq, Eq)]
pub(crate) struct Key {
    directories: Vec<(PathBuf, u64, u64)>,
    network: Network,
}

impl Templates {
    pub(crate) fn new(directory: PathBuf, host: Host) -> Self {
        let (built, warnings) = (Vec::new(), VecDeque::new());
        Self { directory, host, built, serial: 0, warnings }
    }

    /// Whether instances have inodes of their own.
    pub(crate) fn are_private(&self) -> bool {
        self.host.has_overlays
    }

    /// What is weaker than it should be about a template, once.
    pub(crate) fn take_warning(&mut self) -> Option<String> {
        self.warnings.pop_front()
    }

    /// The root for an instance, from a template that is built if there is none yet.
    pub(crate) fn root(&mut self, spec: &LaunchSpec) -> Result<Root, Fault> {
        self.get(spec)?.root().step("copy the root")
    }

    fn get(&mut self, spec: &LaunchSpec) -> Result<&Template, Fault> {
        let key = Key::of(spec)?;
        let known = self.built.iter().position(|template| template.key == key);
        let mut known = known.map(|at| self.built.remove(at));
        if known.as_mut().is_some_and(|template| template.snapshot.is_stale()) {
            known.take().into_iter().for_each(Template::remove);
        }
        let template = match known {
            Some(template) => template,
            None => self.build(spec, key)?,
        };
        // The order is that of last use.
        self.built.push(template);
        if self.built.len() > MOST {
            self.built.remove(0).remove();
        }
        Ok(&self.built[self.built.len() - 1])
    }

    fn build(&mut self, spec: &LaunchSpec, key: Key) -> Result<Template, Fault> {
        self.serial += 1;
        let path = self.directory.join(self.serial.to_string());
        let mut built = Builder::new(&path, &self.host, self.host.has_overlays).build(spec);
        if let Err(fault) = &built
            && self.host.has_overlays
            && fault.errno == builder::NO_OVERLAY
        {
            let text = format!(
                "{fault}, since the kernel refuses an overlay of it: instances can watch and lock \
                 the host's programs"
            );
            self.warnings.push_back(text);
            remove(&path);
            built = Builder::new(&path, &self.host, false).build(spec);
        }
        let built = built.inspect_err(|_| remove(&path))?;
        self.warnings.extend(built.warnings);
        let (layout, snapshot) = (Rc::new(built.layout), built.snapshot);
        Ok(Template { key, path, layout, snapshot, has_devices: built.has_devices })
    }
}

impl Drop for Templates {
    fn drop(&mut self) {
        self.built.drain(..).for_each(Template::remove);
    }
}

impl Template {
    fn root(&self) -> io::Result<Root> {
        let shown = if self.layout.is_private { &self.path } else { &self.path.join("base") };
        Ok(Root {
            template: detached_copy(shown)?,
            devices: self.devices()?,
            layout: Rc::clone(&self.layout),
        })
    }

    fn devices(&self) -> io::Result<Option<OwnedFd>> {
        let (nodes, empty) = (self.path.join("dev"), self.path.join("empty"));
        self.has_devices.then(|| overlay_of_devices(&nodes, &empty)).transpose()
    }

    /// Instances have copies of their own and do not notice.
    fn remove(self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_dir(path);
}

impl Key {
    pub(crate) fn of(spec: &LaunchSpec) -> Result<Self, Fault> {
        let identify = |path: &PathBuf| {
            let found = fs::metadata(path).step(format!("find {}", path.display()))?;
            Ok((path.clone(), found.dev(), found.ino()))
        };
        let directories = [&spec.server]
            .into_iter()
            .chain(&spec.programs)
            .map(identify)
            .collect::<Result<_, _>>()?;
        Ok(Self { directories, network: spec.network })
    }
}
