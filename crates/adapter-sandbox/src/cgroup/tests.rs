use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;

/// A directory that looks like a cgroup file system, as far as files go.
struct Fake(PathBuf);

impl Fake {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("hearth-groups-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().expect("has one")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).expect("a file")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn v2_line(at: &Path) -> String {
    format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n", at.display())
}

/// The files that the kernel would make in a group that has the controllers.
fn furnish(fake: &Fake, directory: &str) {
    for (file, text) in [
        ("cgroup.controllers", "cpuset cpu io memory pids"),
        ("cgroup.subtree_control", ""),
        ("cgroup.procs", ""),
        ("memory.max", "max"),
        ("memory.oom.group", "0"),
        ("memory.events", "low 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
        ("cpu.max", "max 100000"),
        ("pids.max", "max"),
    ] {
        fake.write(&format!("{directory}{file}"), text);
    }
}

fn limits() -> Limits {
    Limits { cpus_milli: 1500, pids: 40, ..Limits::with_memory(64 << 20) }
}

#[test]
fn lines_of_mountinfo_are_read() {
    let v1 = "35 31 0:32 /docker/x /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct";
    let mount = Mounted::parse(v1).expect("a cgroup");
    assert_eq!((mount.version, mount.root), (Version::V1, "/docker/x"));
    assert_eq!(mount.candidates("memory", "").len(), 0);
    assert_eq!(mount.candidates("cpu", "")[0].directory, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    assert!(Mounted::parse("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw").is_none());
    assert!(Mounted::parse("nonsense").is_none());
}

#[test]
fn a_delegated_part_of_v2_is_found() {
    let fake = Fake::new();
    let line = v2_line(&fake.0);
    let mount = Mounted::parse(&line).expect("a cgroup");
    let candidates = mount.candidates("cpu", "0::/user.slice/user-1000.slice/session.scope\n");
    let directories: Vec<_> = candidates.into_iter().map(|place| place.directory).collect();
    let delegated = fake.0.join("user.slice/user-1000.slice/session.scope");
    assert_eq!(directories, [fake.0.clone(), delegated]);
}

#[test]
fn limits_are_written_as_v2_wants_them() {
    let fake = Fake::new();
    for directory in ["", "hearth/", "hearth/3/", "hearth/3/web/"] {
        furnish(&fake, directory);
    }
    let groups = Groups::among(&v2_line(&fake.0), "0::/\n", "3");
    assert_eq!(groups.missing(), Vec::<&str>::new());
    for directory in ["", "hearth/", "hearth/3/"] {
        let enabled = fake.read(&format!("{directory}cgroup.subtree_control"));
        assert!(enabled.starts_with('+'), "{directory}: {enabled}");
    }
    let (group, entrance) = groups.create("web", &limits()).expect("made");
    assert_eq!(fake.read("hearth/3/web/memory.max"), "67108864");
    assert_eq!(fake.read("hearth/3/web/memory.oom.group").chars().next(), Some('1'));
    assert_eq!(fake.read("hearth/3/web/cpu.max"), "150000 100000");
    assert_eq!(fake.read("hearth/3/web/pids.max").chars().take(2).collect::<String>(), "41");
    assert!(entrance.v2.is_some() && entrance.v1.is_empty());

    assert!(!group.is_out_of_memory());
    fake.write("hearth/3/web/memory.events", "low 0\noom 2\noom_kill 1\n");
    assert!(group.is_out_of_memory());
}

#[test]
fn only_what_differs_is_written_again() {
    let fake = Fake::new();
    for directory in ["", "hearth/", "hearth/3/", "hearth/3/web/"] {
        furnish(&fake, directory);
    }
    let groups = Groups::among(&v2_line(&fake.0), "0::/\n", "3");
    let (group, _) = groups.create("web", &limits()).expect("made");
    for file in ["memory.max", "cpu.max", "pids.max"] {
        fake.write(&format!("hearth/3/web/{file}"), "");
    }
    let read =
        || ["memory.max", "cpu.max", "pids.max"].map(|f| fake.read(&format!("hearth/3/web/{f}")));
    group.change(&limits(), &limits()).expect("nothing to do");
    assert_eq!(read(), ["", "", ""]);
    group.change(&limits(), &Limits { pids: 9, ..limits() }).expect("written");
    assert_eq!(read(), ["", "", "10"]);
    let other = Limits { cpus_milli: 500, memory_bytes: 1 << 20, ..limits() };
    group.change(&limits(), &other).expect("written");
    assert_eq!(read(), ["1048576", "50000 100000", "10"]);
}

#[test]
fn usage_is_read_as_v2_tells_it() {
    let fake = Fake::new();
    for directory in ["", "hearth/", "hearth/3/", "hearth/3/web/"] {
        furnish(&fake, directory);
    }
    let groups = Groups::among(&v2_line(&fake.0), "0::/\n", "3");
    let (group, _) = groups.create("web", &limits()).expect("made");
    assert_eq!((group.memory_bytes(), group.cpu_time()), (None, None));
    fake.write("hearth/3/web/memory.current", "4096\n");
    fake.write("hearth/3/web/cpu.stat", "usage_usec 1500\nuser_usec 1000\n");
    assert_eq!(group.memory_bytes(), Some(4096));
    assert_eq!(group.cpu_time(), Some(Duration::from_micros(1500)));
}

#[test]
fn controllers_may_be_on_different_hierarchies() {
    let fake = Fake::new();
    for directory in ["two/", "two/hearth/", "two/hearth/0/", "two/hearth/0/web/"] {
        furnish(&fake, directory);
        fake.write(&format!("{directory}cgroup.controllers"), "cpu pids");
    }
    for file in ["memory.limit_in_bytes", "tasks"] {
        fake.write(&format!("one/hearth/0/web/{file}"), "");
    }
    let one = fake.0.join("one");
    let mounts = format!(
        "35 31 0:32 / {} rw - cgroup cgroup rw,memory\n{}",
        one.display(),
        v2_line(&fake.0.join("two"))
    );
    let groups = Groups::among(&mounts, "4:memory:/\n0::/\n", "0");
    assert_eq!(groups.missing(), Vec::<&str>::new());
    let (group, entrance) = groups.create("web", &limits()).expect("made");
    assert_eq!(fake.read("one/hearth/0/web/memory.limit_in_bytes"), "67108864");
    assert!(fake.read("two/hearth/0/web/cpu.max").starts_with("150000 100000"));
    assert!(entrance.v2.is_some());
    assert_eq!(entrance.v1.len(), 1);

    fake.write(
        "one/hearth/0/web/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    );
    assert!(!group.is_out_of_memory());
    fake.write(
        "one/hearth/0/web/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    );
    assert!(group.is_out_of_memory());
}

/// The v1 hierarchy of memory in a directory, with an owner's group and those around it.
fn memory_v1(fake: &Fake, has_sockets: bool) -> Groups {
    for directory in ["", "hearth/", "hearth/0/", "hearth/0/web/"] {
        for file in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
            fake.write(&format!("{directory}{file}"), "9223372036854771712");
        }
        if has_sockets {
            fake.write(
                &format!("{directory}memory.kmem.tcp.limit_in_bytes"),
                "9223372036854771712",
            );
        }
        fake.write(&format!("{directory}cgroup.procs"), "");
        fake.write(&format!("{directory}tasks"), "");
    }
    let mounts = format!("35 31 0:32 / {} rw - cgroup cgroup rw,memory\n", fake.0.display());
    Groups::among(&mounts, "4:memory:/\n", "0")
}

#[test]
fn version_1_divides_memory_between_sockets_and_the_rest() {
    for (has_sockets, sockets, rest) in [(true, 4 << 20, 60 << 20), (false, 0, 64 << 20)] {
        let fake = Fake::new();
        let groups = memory_v1(&fake, has_sockets);
        assert_eq!(groups.are_sockets_counted(), has_sockets);
        let (group, _) = groups.create("web", &limits()).expect("made");
        // A file keeps what it had behind a shorter text, other than the kernel's.
        let starts = |file: &str, value: u64| {
            let text = fake.read(&format!("hearth/0/web/{file}"));
            assert!(text.starts_with(&value.to_string()), "{file}: {text}");
        };
        starts("memory.limit_in_bytes", rest);
        starts("memory.memsw.limit_in_bytes", rest);
        if has_sockets {
            starts("memory.kmem.tcp.limit_in_bytes", sockets);
        }
        let double = Limits { memory_bytes: 128 << 20, ..limits() };
        group.change(&limits(), &double).expect("written");
        starts("memory.limit_in_bytes", 2 * rest);
        if has_sockets {
            starts("memory.kmem.tcp.limit_in_bytes", 2 * sockets);
            fake.write("hearth/0/web/memory.kmem.tcp.usage_in_bytes", "1000\n");
        }
        fake.write("hearth/0/web/memory.usage_in_bytes", "4096\n");
        assert_eq!(group.memory_bytes(), Some(if has_sockets { 5096 } else { 4096 }));
    }
}

#[test]
fn all_instances_together_leave_something_to_the_host() {
    const GIB: u64 = 1 << 30;
    for (memory, reserve, expected) in [
        (20 * GIB, None, 18 * GIB),           // a tenth
        (GIB, None, GIB - (256 << 20)),       // never less than this
        (256 << 20, None, 128 << 20),         // never more than half
        (20 * GIB, Some(GIB), 19 * GIB),      // as was asked for
        (20 * GIB, Some(30 * GIB), 10 * GIB), // never more than half
        (20 * GIB, Some(0), 20 * GIB),        // as was asked for
    ] {
        assert_eq!(host::share(memory, reserve), expected, "{memory} {reserve:?}");
    }
}

#[test]
fn groups_around_the_owner_may_leave_less_than_the_machine_has() {
    let fake = Fake::new();
    for directory in ["", "hearth/", "hearth/3/", "hearth/3/web/"] {
        furnish(&fake, directory);
        fake.write(&format!("{directory}cpu.weight"), "");
    }
    let groups = Groups::among(&v2_line(&fake.0), "0::/\n", "3");
    let machine = 100 << 30;
    for (around, expected) in [("max", machine - (10 << 30)), ("4294967296", 4 << 30)] {
        fake.write("memory.max", around);
        fake.write("hearth/3/memory.max", "");
        let reserve = (around != "max").then_some(0);
        assert_eq!(groups.confine(machine, reserve).expect("written"), Some(expected));
        assert_eq!(fake.read("hearth/3/memory.max"), expected.to_string());
    }
    // The instances of all owners weigh half of what the daemon does.
    assert_eq!(fake.read("hearth/cpu.weight"), "50");
    // They end one by one: what one has done is not the others' fault.
    assert_eq!(fake.read("hearth/3/memory.oom.group"), "0");

    let fake = Fake::new();
    let groups = memory_v1(&fake, true);
    assert_eq!(groups.confine(1 << 30, Some(0)).expect("written"), Some(1 << 30));
    let limit = fake.read("hearth/0/memory.limit_in_bytes");
    assert!(limit.starts_with(&((1 << 30) - (64 << 20)).to_string()), "{limit}");

    assert_eq!(Groups::default().confine(1 << 30, None).expect("nothing to do"), None);
}

#[test]
fn what_is_missing_is_said() {
    let fake = Fake::new();
    for directory in ["", "hearth/", "hearth/0/"] {
        furnish(&fake, directory);
        fake.write(&format!("{directory}cgroup.controllers"), "pids");
    }
    let groups = Groups::among(&v2_line(&fake.0), "0::/\n", "0");
    assert_eq!(groups.missing(), ["memory", "cpu"]);
    assert_eq!(Groups::among("", "", "0").missing(), CONTROLLERS);
}
