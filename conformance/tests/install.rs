//! The install step: it works on a copy, with packages that need no network.

use std::{collections::BTreeMap, fs, path::Path};

use conformance::{
    client::Request,
    flavour::Flavour,
    folder,
    server::{Scratch, Server, adapter, hearth},
};

/// Every file and what is in it; links as what they point to.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a folder").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        let name = path.display().to_string();
        if kind.is_dir() {
            found.insert(name, b"a folder".to_vec());
            found.extend(contents(&path));
        } else if kind.is_symlink() {
            found.insert(name, fs::read_link(path).expect("a link").display().to_string().into());
        } else {
            found.insert(name, fs::read(path).expect("a file"));
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a kind").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

fn installs(runtime: &str) {
    if Flavour::of(runtime).is_none() {
        return;
    }
    let source = Scratch::new();
    copy(&folder().join("functions/installing").join(runtime), source.path());
    let before = contents(source.path());
    let mut command = hearth();
    command.arg("serve").arg(source.path()).args(["--runtime", runtime]);
    let server = Server::run(command.args(["--listen", "127.0.0.1:0", "--adapter", &adapter()]));
    let response = server.call(&Request::new("GET", "/"));
    assert_eq!((response.status(), response.text().as_str()), (200, "hello from a package"));
    assert_eq!(contents(source.path()), before, "the source is as it was");
}

#[test]
fn a_package_of_node_is_installed() {
    installs("node");
}

#[test]
fn a_package_of_python_is_installed() {
    installs("python");
}

fn refuses(runtime: &str, files: [(&str, &str); 2]) {
    const SOURCE: i32 = 65;
    if Flavour::of(runtime).is_none() {
        return;
    }
    let source = Scratch::new();
    for (name, text) in files {
        fs::write(source.path().join(name), text).expect("a file");
    }
    let before = contents(source.path());
    let mut command = hearth();
    command.arg("serve").arg(source.path()).args(["--adapter", &adapter()]);
    let output = command.args(["--listen", "127.0.0.1:0"]).output().expect("hearth runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(SOURCE), "{said}");
    assert!(said.contains("install step"), "{said}");
    assert_eq!(contents(source.path()), before, "the source is as it was");
}

#[test]
fn a_broken_manifest_of_node_is_the_sources_mistake() {
    refuses("node", [("index.js", "module.exports = 1;"), ("package.json", "{ broken")]);
}

#[test]
fn a_broken_manifest_of_python_is_the_sources_mistake() {
    refuses("python", [("main.py", "main = 1"), ("requirements.txt", "./no-such-package")]);
}
