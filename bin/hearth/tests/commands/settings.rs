//! Where settings come from: flags, files, and what is deployed already.

use std::fs;

use api::{DeployRequest, SettingName, SettingsPatch};
use archive::{UnpackLimits, unpack};

use crate::{Folder, daemon::Daemon, parts, run, stderr, stdout};

#[test]
fn settings_are_set_without_the_source() {
    let daemon = Daemon::start();
    let folder = Folder::new("set");
    let file = folder.0.join("variables");
    fs::write(&file, "# two\nexport A=file\nB='b c'\n").expect("write");
    let file = file.to_str().expect("plain");
    let output = run(
        &daemon,
        &[
            "set",
            "hello",
            "-v",
            "--memory",
            "256M",
            "--env-file",
            file,
            "--env",
            "A=flag",
            "--unset-env",
            "C",
            "--reset",
            "timeout",
            "--reset",
            "environment",
        ],
    );
    assert_eq!(stdout(&output), "http://hello.localhost\n");
    assert!(stderr(&output).contains("hello is active"), "{}", stderr(&output));
    assert!(stderr(&output).contains("reset        timeout, environment"), "{}", stderr(&output));
    let sent = daemon.seen("PATCH", "/v1/functions/hello/settings");
    let patch: SettingsPatch = serde_json::from_slice(&sent.body).expect("a patch");
    let variable = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    let expected = SettingsPatch {
        reset: vec![SettingName::Timeout, SettingName::Environment],
        environment: [variable("A", Some("flag")), variable("B", Some("b c")), variable("C", None)]
            .into(),
        memory: Some("256M".into()),
        ..SettingsPatch::default()
    };
    assert_eq!(patch, expected);
    assert!(daemon.all_seen().iter().all(|seen| seen.method != "POST"), "no source is sent");

    fs::write(folder.0.join("variables"), "A=1\nnonsense\n").expect("write");
    let output = run(&daemon, &["set", "hello", "--env-file", file]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("variables: line 2 is not"), "{}", stderr(&output));
}

#[test]
fn a_folder_says_how_it_is_deployed_and_flags_win() {
    let daemon = Daemon::start();
    let folder = Folder::with_source("with-settings");
    let write = |text: &str| fs::write(folder.0.join("hearth.toml"), text).expect("write");
    write(
        "name = 'hello'\nruntime = 'node-20'\nentrypoint = 'index.js'\nmemory = '256M'\nmax = 3\n\
         [environment]\nA = 'file'\nB = 'file'\n",
    );
    fs::write(folder.0.join(".env"), "C=dotenv\nB=dotenv\n").expect("write");
    let dotenv = folder.0.join(".env");
    let dotenv = dotenv.to_str().expect("plain");
    let flags = ["--max", "5", "--env", "B=flag", "--env-file", dotenv, "--entrypoint", "x.js"];
    let output = run(&daemon, &[&["deploy", folder.path()], &flags[..]].concat());
    assert_eq!(stdout(&output), "http://hello.localhost\n");
    assert!(!stderr(&output).contains(".env"), "its variables are used: {}", stderr(&output));
    let sent = daemon.seen("POST", "/v1/functions/hello/deployments");
    let [request, source] = parts(&sent.body);
    let request: DeployRequest = serde_json::from_slice(request).expect("a request");
    let variable = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
    let settings = SettingsPatch {
        environment: [variable("A", "file"), variable("B", "flag"), variable("C", "dotenv")].into(),
        memory: Some("256M".into()),
        max: Some(5),
        ..SettingsPatch::default()
    };
    let expected = DeployRequest {
        runtime: Some("node-20".into()),
        entrypoint: Some("x.js".into()),
        settings,
    };
    assert_eq!(request, expected);
    let unpacked = Folder::new("sent");
    unpack(source, &unpacked.0, &UnpackLimits::default()).expect("an archive");
    let names: Vec<_> = fs::read_dir(&unpacked.0).expect("read").flatten().collect();
    assert_eq!(names.len(), 1, "the source alone: {names:?}");

    // Without --env-file somebody may wonder why the variables are not there.
    let output = run(&daemon, &["deploy", folder.path(), "--name", "other"]);
    assert_eq!(stdout(&output), "http://other.localhost\n", "a flag wins");
    assert_eq!(stderr(&output).matches("note: files such as .env").count(), 1);
    write("nmae = 'x'\n\nmin = 'x'\n");
    let output = run(&daemon, &["deploy", folder.path()]);
    assert_eq!(output.status.code(), Some(64));
    let told = stderr(&output);
    assert!(told.contains("hearth.toml is not right: line 1: unknown key `nmae`"), "{told}");
    assert!(told.contains("did you mean `name`?; line 3: min: "), "{told}");
}

#[test]
fn a_new_folder_gets_a_function_and_its_settings() {
    let daemon = Daemon::start();
    for (runtime, entrypoint) in [("node", "index.js"), ("python-3", "main.py")] {
        let folder = Folder::new(&format!("new-{}", &runtime[..2]));
        fs::create_dir(folder.0.join(".git")).expect("a hidden one does not count");
        let init = |more: &[&str]| {
            run(&daemon, &[&["init", folder.path(), "--runtime", runtime], more].concat())
        };
        let written = stdout(&init(&[]));
        let path = folder.path();
        assert_eq!(written, format!("{path}/{entrypoint}\n{path}/hearth.toml\n"));
        let again = init(&[]);
        assert_eq!(again.status.code(), Some(64), "{}", stderr(&again));
        assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
        fs::write(folder.0.join(entrypoint), "mine").expect("write");
        fs::write(folder.0.join("hearth.toml"), "old").expect("write");
        assert_eq!(stdout(&init(&["--force", "--name", "x"])), format!("{path}/hearth.toml\n"));
        assert_eq!(fs::read_to_string(folder.0.join(entrypoint)).expect("read"), "mine");
        stdout(&run(&daemon, &["deploy", path]));
        let [request, _] =
            parts(&daemon.seen("POST", "/v1/functions/x/deployments").body).map(<[u8]>::to_vec);
        let request: DeployRequest = serde_json::from_slice(&request).expect("a request");
        assert_eq!(request.runtime.as_deref(), Some(runtime));
        assert_eq!(request.entrypoint.as_deref(), Some(entrypoint));
        assert_eq!(request.settings, SettingsPatch::default());
    }
    let folder = Folder::with_source("told");
    stdout(&run(&daemon, &["init", folder.path()]));
    let text = fs::read_to_string(folder.0.join("hearth.toml")).expect("written");
    assert!(text.contains("name = \"told\"") && text.contains("runtime = \"node\""), "{text}");
    let unknown = Folder::new("unknown");
    fs::write(unknown.0.join("notes.txt"), "x").expect("write");
    let output = run(&daemon, &["init", unknown.path()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("--runtime"), "{}", stderr(&output));
    assert!(!unknown.0.join("hearth.toml").exists());
    let missing = unknown.0.join("deep/new");
    stdout(&run(&daemon, &["init", missing.to_str().expect("plain")]));
    assert!(missing.join("index.js").is_file());
}
