//! The command line: what is told from the source, and mistakes, which have a code and a remedy.

use std::{
    fs,
    io::Read,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::{Command, Stdio},
};

use conformance::{
    client::Request,
    flavour::Flavour,
    on_each_runtime,
    server::{Scratch, Server, Settings, adapter, hearth},
    wait,
};

const USAGE: i32 = 64;
const NO_INPUT: i32 = 66;
const UNAVAILABLE: i32 = 69;
/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// Runs a command that should end by itself; returns its code and standard error.
fn ended(command: &mut Command) -> (Option<i32>, String) {
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("hearth starts");
    let mut status = None;
    let has_ended = wait::comes(|| {
        status = child.try_wait().expect("it is our child");
        status.is_some()
    });
    if !has_ended {
        let _ = child.kill();
        panic!("hearth has not ended by itself: {command:?}");
    }
    let mut errors = String::new();
    let mut pipe = child.stderr.take().expect("it was asked for");
    pipe.read_to_string(&mut errors).expect("text");
    (status.and_then(|status| status.code()), errors)
}

fn serve(arguments: &[&str]) -> Command {
    let mut command = hearth();
    command.args(["serve", "--listen", "127.0.0.1:0", "--adapter", &adapter()]).args(arguments);
    command
}

/// Serves a folder and says no more than that.
fn assert_detected(source: &Scratch, expected: &str) {
    let mut command = serve(&[&source.path().display().to_string()]);
    let server = Server::run(&mut command);
    let response = server.call(&Request::action("entrypoint"));
    assert_eq!((response.status(), response.text().as_str()), (200, expected));
}

fn folder_with(files: &[(&str, &str)]) -> Scratch {
    let scratch = Scratch::new();
    for (name, text) in files {
        let path = scratch.path().join(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    scratch
}

const SCRIPT: &str = "module.exports = ({ res }) => res.text('found');";
const MODULE: &str = "export default ({ res }) => res.text('found');";
const PYTHON: &str = "def main(context):\n    return context.res.text('found')\n";

#[test]
fn a_runtime_and_an_entrypoint_are_told_from_the_source() {
    for (runtime, file, text) in [
        ("node", "index.js", SCRIPT),
        ("node", "src/index.js", SCRIPT),
        ("node", "index.mjs", MODULE),
        ("python", "main.py", PYTHON),
        ("python", "src/main.py", PYTHON),
    ] {
        if Flavour::of(runtime).is_some() {
            assert_detected(&folder_with(&[(file, text)]), "found");
        }
    }
}

#[test]
fn a_folder_of_no_known_kind_is_a_mistake() {
    let folder = folder_with(&[("notes.txt", "")]);
    let (code, said) = ended(&mut serve(&[&folder.path().display().to_string()]));
    assert_eq!(code, Some(USAGE), "{said}");
    assert!(said.contains("--runtime"), "{said}");
}

#[test]
fn a_missing_folder_is_a_mistake() {
    let (code, said) = ended(&mut serve(&["/no/such/folder"]));
    assert_eq!(code, Some(NO_INPUT), "{said}");
    assert!(said.contains("/no/such/folder"), "{said}");
}

#[test]
fn an_unknown_runtime_is_a_mistake() {
    let folder = folder_with(&[("index.js", SCRIPT)]);
    let path = folder.path().display().to_string();
    let (code, said) = ended(&mut serve(&[&path, "--runtime", "cobol"]));
    assert_eq!(code, Some(USAGE), "{said}");
    assert!(said.contains("cobol") && said.contains("node"), "the known ones are listed: {said}");
}

#[test]
fn a_folder_without_an_entrypoint_is_a_mistake() {
    let folder = folder_with(&[("requirements.txt", "")]);
    let (code, said) = ended(&mut serve(&[&folder.path().display().to_string()]));
    assert_eq!(code, Some(USAGE), "{said}");
    assert!(said.contains("main.py") && said.contains("--entrypoint"), "{said}");
}

#[test]
fn wrong_arguments_are_mistakes() {
    let folder = folder_with(&[("index.js", SCRIPT)]);
    let path = folder.path().display().to_string();
    for wrong in [
        &["--memory", "lots"][..],
        &["--memory", "1KiB"],
        &["--cpus", "none"],
        &["--env", "NOVALUE"],
        &["--env", "=x"],
        &["--env", "A B=c"],
        &["--env", "HEARTH_SOCKET=1"],
        &["--memory", "999999GiB"],
        &["--cpus", "1000"],
        &["--spares", "257"],
        &["--network", "everything"],
        &["--nonsense"],
    ] {
        let (code, said) = ended(serve(&[&path]).args(wrong));
        assert_eq!(code, Some(USAGE), "{wrong:?}: {said}");
        assert!(said.contains(wrong[0]), "{wrong:?}: {said}");
    }
}

/// Who starts it looks at its terminal, not at the log of a call.
#[test]
fn a_function_that_does_not_load_is_told_at_once() {
    let flavour = Flavour::any();
    let settings = Settings {
        entrypoint: Some(format!("broken/syntax.{}", flavour.extension)),
        ..Settings::default()
    };
    let server = Server::start(flavour, &settings);
    server.process().signal("TERM");
    let said = server.errors();
    assert!(said.contains("hearth: the function does not start"), "{said}");
    assert!(said.contains("Syntax error in broken/syntax"), "{said}");
}

/// Without root there is no outbound network: who asks for it is told before anything is served.
#[test]
fn a_network_that_cannot_be_had_is_refused_at_the_start() {
    let scratch = Scratch::new();
    let program = scratch.path().join("hearth");
    fs::copy(hearth().get_program(), &program).expect("a copy that everybody can run");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(scratch.path(), permissions).expect("its own folder");
    let as_nobody = || {
        let mut command = Command::new(&program);
        command.env_clear().env("HOME", scratch.path()).env("PATH", "/usr/sbin:/usr/bin:/bin");
        if fs::metadata("/proc/self").is_ok_and(|ours| ours.uid() == 0) {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.stdin(Stdio::null());
        command
    };
    for line in [
        &["up", "--listen", "127.0.0.1:0", "--network", "egress"][..],
        &["serve", Flavour::any().folder().to_str().expect("text"), "--network", "egress"],
    ] {
        let (code, said) = ended(as_nobody().args(line));
        assert_eq!(code, Some(UNAVAILABLE), "{said}");
        if said.contains("no sandbox on this machine") {
            eprintln!("skipped: no sandbox without root on this machine");
            return;
        }
        assert!(said.contains("no network `egress` here"), "{said}");
    }
    let found = as_nobody().arg("doctor").output().expect("it runs");
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    for what in ["nft", "forwarding", "name servers"] {
        assert!(found.contains(&format!("missing  {what}")), "{what}: {found}");
    }
}

#[test]
fn production_refuses_an_adapter_that_does_not_isolate() {
    let folder = folder_with(&[("index.js", SCRIPT)]);
    let path = folder.path().display().to_string();
    let mut command = hearth();
    let (code, said) =
        ended(command.args(["serve", &path, "--production", "--adapter", "process"]));
    assert_eq!(code, Some(USAGE), "{said}");
    assert!(said.contains("sandbox"), "{said}");
}

#[test]
fn a_taken_port_is_named() {
    let server = Server::usual(Flavour::any());
    let (taken, path) = (server.address().to_string(), Flavour::any().folder());
    let mut command = hearth();
    command.arg("serve").arg(path).args(["--adapter", &adapter(), "--listen", &taken]);
    let (code, said) = ended(&mut command);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&taken), "{said}");
}

#[test]
fn enforced_headers_that_are_none_are_reported() {
    let mut settings = Settings::default();
    settings.environment.insert("OPEN_RUNTIMES_HEADERS".into(), "nonsense".into());
    let server = Server::start(Flavour::any(), &settings);
    server.process().signal("TERM");
    assert!(server.errors().contains("OPEN_RUNTIMES_HEADERS"));
}

on_each_runtime! {
    fn a_version_that_is_there_can_be_asked_for(flavour: &Flavour) {
        for version in flavour.versions() {
            let runtime = format!("{}-{version}", flavour.runtime);
            let path = flavour.folder().display().to_string();
            let server = Server::run(&mut serve(&[&path, "--runtime", &runtime]));
            assert_eq!(server.call(&Request::action("entrypoint")).status(), 200, "{runtime}");
        }
    }

    fn a_version_that_is_missing_is_what_the_machine_lacks(flavour: &Flavour) {
        let runtime = format!("{}-1.2", flavour.runtime);
        let path = flavour.folder().display().to_string();
        let (code, said) = ended(&mut serve(&[&path, "--runtime", &runtime]));
        assert_eq!(code, Some(UNAVAILABLE), "{said}");
        assert!(said.contains("get it:"), "{said}");
    }
}

#[test]
fn runtimes_of_a_directory_replace_the_built_in_ones() {
    let runtimes = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtimes");
    let source = folder_with(&[("index.js", SCRIPT)]);
    let folder = source.path().display().to_string();
    if Flavour::available().iter().any(|flavour| flavour.runtime == "node") {
        let server = Server::run(&mut serve(&[&folder, "--runtimes", runtimes]));
        assert_eq!(server.call(&Request::action("any")).text(), "found");
    }
    let empty = Scratch::new();
    let none = empty.path().display().to_string();
    let (code, errors) = ended(&mut serve(&[&folder, "--runtimes", &none]));
    assert_eq!(code, Some(USAGE), "{errors}");
    assert!(errors.contains("runtime.toml"), "{errors}");
}
