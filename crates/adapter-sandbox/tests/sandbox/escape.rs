//! What a function may try, and what comes of it: nothing.

use std::{fs, path::Path};

use adapter::Adapter;
use model::{ExitStatus, Limits};

use crate::{
    Test,
    lab::{Lab, Outcome, id, is_root},
};

pub(crate) const TESTS: &[Test] = &[
    ("host_files_are_out_of_sight", |lab| Box::pin(host_files_are_out_of_sight(lab))),
    ("host_processes_are_out_of_sight", |lab| Box::pin(host_processes_are_out_of_sight(lab))),
    ("privileged_calls_are_refused", |lab| Box::pin(privileged_calls_are_refused(lab))),
    ("the_kernel_cannot_be_configured", |lab| Box::pin(the_kernel_cannot_be_configured(lab))),
    ("the_system_cannot_be_written", |lab| Box::pin(the_system_cannot_be_written(lab))),
    ("a_worker_has_no_privileges", |lab| Box::pin(a_worker_has_no_privileges(lab))),
    ("a_setuid_program_has_no_effect", |lab| Box::pin(a_setuid_program_has_no_effect(lab))),
    ("the_init_cannot_be_disturbed", |lab| Box::pin(the_init_cannot_be_disturbed(lab))),
    ("a_fork_bomb_is_bounded", |lab| Box::pin(a_fork_bomb_is_bounded(lab))),
    ("a_memory_bomb_hits_only_itself", |lab| Box::pin(a_memory_bomb_hits_only_itself(lab))),
    ("scratch_space_is_bounded", |lab| Box::pin(scratch_space_is_bounded(lab))),
    ("the_number_of_files_is_bounded", |lab| Box::pin(the_number_of_files_is_bounded(lab))),
    ("instances_do_not_see_each_other", |lab| Box::pin(instances_do_not_see_each_other(lab))),
];

async fn host_files_are_out_of_sight(lab: Lab) -> Outcome {
    let marker = lab.directory.path().join("secret");
    fs::write(&marker, "secret").expect("a file");
    let script = format!(
        "ls -d /root /home /etc/shadow /sys /work /boot /srv /opt /run/lock /var/log {} 2>/dev/null; \
         echo from inside > /tmp/hearth-escape; echo done",
        marker.display()
    );
    let (output, _) = lab.run(&lab.script(&id("files"), &script)).await;
    assert_eq!(output, "done\n");
    assert!(!Path::new("/tmp/hearth-escape").exists(), "the host has its own /tmp");
    Outcome::Passed
}

async fn host_processes_are_out_of_sight(lab: Lab) -> Outcome {
    let script = format!(
        "for p in /proc/[0-9]*; do test ${{p#/proc/}} -lt 10 || echo sees $p; done; \
         kill -0 {} 2>&1 && echo reaches the host; cat /proc/2/comm",
        std::process::id()
    );
    let (output, _) = lab.run(&lab.script(&id("processes"), &script)).await;
    assert!(!output.contains("sees"), "{output}");
    assert!(!output.contains("reaches"), "{output}");
    assert!(output.ends_with("\nsh\n"), "its own processes are there: {output}");
    Outcome::Passed
}

const CALLS: &str = r#"
import ctypes, os, platform, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    print(name, "allowed" if result != -1 else os.strerror(ctypes.get_errno()))
intel = platform.machine() == "x86_64"
pick = lambda x86, arm: x86 if intel else arm
call("mount", pick(165, 40), b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount", pick(166, 39), b"/tmp", 2)
call("open_tree", 428, -100, b"/", 1)
call("fsopen", 430, b"tmpfs", 0)
call("pivot_root", pick(155, 41), b"/tmp", b"/tmp")
call("ptrace", pick(101, 117), 16, 1, 0, 0)
for name, flag in dict(user=0x10000000, mount=0x20000, pid=0x20000000, net=0x40000000).items():
    call("unshare-" + name, pick(272, 97), flag)
call("clone-user", pick(56, 220), 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, ctypes.create_string_buffer(88), 88)
call("setns", pick(308, 268), 0, 0)
call("keyctl", pick(250, 219), 0, -3, 1)
call("add_key", pick(248, 217), b"user", b"x", b"y", 1, -3)
call("bpf", pick(321, 280), 0, ctypes.create_string_buffer(128), 128)
call("init_module", pick(175, 105), b"", 0, b"")
call("perf_event_open", pick(298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0)
call("userfaultfd", pick(323, 282), 1)
call("io_uring_setup", 425, 4, ctypes.create_string_buffer(120))
call("open_by_handle_at", pick(304, 265), -100, ctypes.create_string_buffer(32), 0)
call("process_vm_readv", pick(310, 270), 1, 0, 0, 0, 0, 0)
call("reboot", pick(169, 142), 0xfee1dead, 672274793, 0, 0)
call("sethostname", pick(170, 161), b"owned", 5)
call("settimeofday", pick(164, 170), ctypes.create_string_buffer(16), 0)
def attempt(name, what):
    try:
        what()
        print(name, "allowed")
    except OSError as error:
        print(name, error.strerror)
attempt("packet-socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("raw-socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("vsock-socket", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("mknod", lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0)))
attempt("setuid", lambda: os.setuid(0))
attempt("chroot", lambda: os.chroot("/tmp"))
attempt("tiocsti", lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
"#;

async fn privileged_calls_are_refused(lab: Lab) -> Outcome {
    let spec = match lab.python("calls", CALLS) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let (output, _) = lab.run(&spec).await;
    assert!(output.contains("tiocsti Operation not permitted"), "ran to its end: {output}");
    for line in output.lines() {
        assert!(!line.ends_with("allowed"), "{line}");
    }
    assert!(output.contains("clone3 Function not implemented"), "{output}");
    Outcome::Passed
}

async fn the_kernel_cannot_be_configured(lab: Lab) -> Outcome {
    let script = "for f in /proc/sys/kernel/hostname /proc/sys/vm/drop_caches \
        /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/net/ipv4/ip_forward \
        /proc/1/oom_score_adj /proc/self/uid_map; do \
        (echo 0 > $f) 2>/dev/null && echo wrote $f; done; \
        cat /proc/kcore 2>/dev/null | head -c 1; echo done";
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("readable");
    let (output, _) = lab.run(&lab.script(&id("settings"), script)).await;
    assert_eq!(output, "done\n");
    let after = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("readable");
    assert_eq!(after, before);
    Outcome::Passed
}

async fn the_system_cannot_be_written(lab: Lab) -> Outcome {
    let script = "for d in / /usr /usr/bin /usr/local /usr/local/server /etc /etc/ssl /dev /mnt \
        /mnt/code /run /run/hearth /var /proc; do \
        (echo x > $d/hearth-escape) 2>/dev/null && echo wrote $d; \
        rm -f $d/hearth-escape 2>/dev/null; done; rm /etc/passwd 2>/dev/null && echo removed; \
        for d in /tmp /dev/shm; do echo x > $d/own && echo own $d; done";
    let instance = id("system");
    let waiting = format!("until test -e /mnt/code/main.txt; do sleep 0.01; done; {script}");
    let spec = lab.script(&instance, &waiting);
    let output = lab.launch(&spec).await;
    let attaching = lab.adapter.attaching().expect("can attach");
    attaching.attach(&instance, &lab.artifact(), &Limits::default()).await.expect("attach");
    lab.adapter.wait(&instance).await.expect("wait");
    lab.stop(&instance).await;
    assert_eq!(output.rest().await, "own /tmp\nown /dev/shm\n");
    assert!(!lab.directory.path().join("server/hearth-escape").exists());
    Outcome::Passed
}

async fn a_worker_has_no_privileges(lab: Lab) -> Outcome {
    let script = "cat /proc/self/status; id; ulimit -c; ulimit -n; umask; \
        ls -l /proc/self/fd | grep -c '[0-9] ->'";
    let (output, _) = lab.run(&lab.script(&id("status"), script)).await;
    for sets in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(output.contains(&format!("{sets}:\t0000000000000000\n")), "{output}");
    }
    assert!(output.contains("NoNewPrivs:\t1\n"), "{output}");
    assert!(output.contains("Seccomp:\t2\n"), "{output}");
    assert!(output.contains("uid=1000(hearth) gid=1000(hearth)"), "{output}");
    let open_files = Limits::default().open_files;
    // Standard streams, and the directory that `ls` lists.
    assert!(output.ends_with(&format!("\n0\n{open_files}\n0022\n4\n")), "{output}");
    Outcome::Passed
}

async fn a_setuid_program_has_no_effect(lab: Lab) -> Outcome {
    if !Path::new("/usr/bin/su").exists() {
        return Outcome::Skipped("no su on this host".into());
    }
    let (output, _) = lab.run(&lab.script(&id("setuid"), "su root -c id </dev/null; id -u")).await;
    assert!(!output.contains("uid=0"), "{output}");
    assert!(output.ends_with("\n1000\n") || output == "1000\n", "{output}");
    Outcome::Passed
}

async fn the_init_cannot_be_disturbed(lab: Lab) -> Outcome {
    // After the attach, when it has no more privileges than the worker.
    let script = "until test -e src/function/main.txt; do sleep 0.01; done; sleep 0.05; \
        for s in TERM INT HUP KILL STOP SEGV; do kill -$s 1; done 2>/dev/null; \
        for f in mem environ maps auxv; do \
        head -c 1 /proc/1/$f >/dev/null 2>&1 && echo read $f; done; \
        ls /proc/1/root/ /proc/1/fd >/dev/null 2>&1 && echo listed; exit 3";
    let spec = lab.script(&id("init"), script);
    let output = lab.launch(&spec).await;
    let attaching = lab.adapter.attaching().expect("can attach");
    attaching.attach(&spec.id, &lab.artifact(), &Limits::default()).await.expect("attach");
    let exit = lab.adapter.wait(&spec.id).await.expect("wait");
    lab.stop(&spec.id).await;
    assert_eq!(output.rest().await, "");
    assert_eq!(exit.status, ExitStatus::Code(3));
    Outcome::Passed
}

async fn a_fork_bomb_is_bounded(lab: Lab) -> Outcome {
    const BOMB: &str = "
import os, time
children = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
        children += 1
    except OSError:
        break
print(children, flush=True)
time.sleep(1000)
";
    let mut spec = match lab.python("bomb", BOMB) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    spec.limits.pids = 20;
    let mut output = lab.launch(&spec).await;
    let children: u32 = output.line().await.parse().expect("a number");
    assert!((10..=20).contains(&children), "{children} children");

    let (other, exit) = lab.run(&lab.script(&id("other"), "ls / > /tmp/x; echo works")).await;
    assert_eq!((other.as_str(), exit.status), ("works\n", ExitStatus::Code(0)));
    lab.stop(&spec.id).await;
    Outcome::Passed
}

async fn a_memory_bomb_hits_only_itself(lab: Lab) -> Outcome {
    let bomb = "
keep = []
while True:
    keep.append(bytearray(1 << 20))
";
    let spec = match lab.python("hungry", bomb) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let other = lab.script(&id("modest"), "echo works; sleep 1000");
    let mut output = lab.launch(&other).await;
    assert_eq!(output.line().await, "works");
    let (said, exit) = lab.run(&spec).await;
    if lab.has_groups() {
        assert!(exit.out_of_memory, "{exit:?} {said}");
        assert_eq!(exit.status, ExitStatus::Signal(9));
    } else {
        assert!(said.contains("MemoryError"), "{exit:?} {said}");
    }
    assert_eq!(lab.adapter.recover().await.expect("recover").len(), 1, "the other one runs");
    lab.stop(&other.id).await;
    Outcome::Passed
}

async fn scratch_space_is_bounded(lab: Lab) -> Outcome {
    let script = "for f in /tmp/a /dev/shm/b; do dd if=/dev/zero of=$f bs=64k count=100 2>/dev/null; \
        done; cat /tmp/a /dev/shm/b | wc -c; (echo x > /tmp/more) 2>&1";
    let mut spec = lab.script(&id("full"), script);
    spec.limits.scratch_bytes = 4 << 20;
    let (output, _) = lab.run(&spec).await;
    let written: u64 = output.split_whitespace().next().and_then(|n| n.parse().ok()).expect("size");
    assert!(written <= 4 << 20, "{written}");
    assert!(written > 3 << 20, "{written}");
    assert!(output.contains("No space left") || output.contains("I/O error"), "{output}");
    Outcome::Passed
}

async fn the_number_of_files_is_bounded(lab: Lab) -> Outcome {
    let script = "i=0; while (: > /tmp/$i) 2>/dev/null && test $i -lt 2000; do i=$((i+1)); done; \
        echo $i; mkdir /dev/shm/directory 2>&1";
    let mut spec = lab.script(&id("inodes"), script);
    spec.limits.scratch_inodes = 200;
    let (output, _) = lab.run(&spec).await;
    let made: u64 = output.split_whitespace().next().and_then(|n| n.parse().ok()).expect("count");
    assert!((150..=200).contains(&made), "{made}");
    assert!(output.contains("No space left"), "{output}");
    Outcome::Passed
}

async fn instances_do_not_see_each_other(lab: Lab) -> Outcome {
    let first = lab.script(&id("first"), "echo mine > /tmp/mine; echo ready; sleep 1000");
    let mut output = lab.launch(&first).await;
    assert_eq!(output.line().await, "ready");
    let script = "cut -d: -f3 /proc/self/cgroup | grep hearth; ls /tmp /dev/shm /run/hearth; \
        ls /proc | grep -c '^[0-9]'";
    let (seen, _) = lab.run(&lab.script(&id("second"), script)).await;
    assert!(!seen.contains("mine"), "{seen}");
    assert!(!seen.contains("hearth/"), "its groups' place is not its business: {seen}");
    // Init, the shell, `ls` and `grep`.
    assert!(seen.trim_end().ends_with('4'), "{seen}");
    if is_root() {
        let users: Vec<String> = lab
            .adapter
            .recover()
            .await
            .expect("recover")
            .iter()
            .filter_map(|instance| {
                fs::read_to_string(format!("/proc/{}/uid_map", instance.pid?)).ok()
            })
            .collect();
        assert!(users.iter().all(|map| !map.split_whitespace().any(|id| id == "0")), "{users:?}");
    }
    lab.stop(&first.id).await;
    Outcome::Passed
}
