//! Ten thousand connections that do nothing keep nobody out.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use edge::ServerLimits;
use front::DoorConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, task::spawn_blocking};

use crate::lab::{Lab, read_until, status};

const IDLE: usize = 10_000;
const DESCRIPTORS: u64 = IDLE as u64 + 1000;
/// Tells the process of the clients where to connect to.
const ADDRESS: &str = "CROWD_ADDRESS";

fn raise_descriptors() -> Result<(), String> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|maximum| maximum < DESCRIPTORS) {
        return Err(format!("{DESCRIPTORS} descriptors are needed, {maximum:?} are allowed"));
    }
    let wanted = Rlimit { current: Some(DESCRIPTORS), maximum };
    setrlimit(Resource::Nofile, wanted).map_err(|error| error.to_string())
}

#[tokio::test]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    if let Err(why) = raise_descriptors() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    // Nobody is sent away for any other reason.
    let head_timeout = Duration::from_secs(3600);
    let limits = ServerLimits { connections: IDLE, head_timeout, ..ServerLimits::default() };
    let lab = Lab::with(limits, DoorConfig::default()).await;
    let mut busy = lab.send("POST /fn/a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n").await;

    // Their ends of the connections would be too many for one process.
    let mut clients = Command::new(env::current_exe().expect("a path"))
        .args(["crowd::idle_clients", "--exact", "--ignored", "--nocapture"])
        .env(ADDRESS, lab.address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut said = BufReader::new(clients.stdout.take().expect("piped"));
    let ready = spawn_blocking(move || {
        line_of(&mut said, "connected");
        said
    });
    let mut said = ready.await.expect("no panic");

    for _ in 0..100 {
        assert_eq!(status(&lab.get("/fn/a", "x").await), 200, "a new client");
    }
    busy.write_all(b"body").await.expect("send");
    assert!(read_until(&mut busy, "body").await.contains(" 200 "), "who was in stays in");

    drop(clients.stdin.take());
    let closed = spawn_blocking(move || {
        let closed = line_of(&mut said, "closed");
        std::io::copy(&mut said, &mut std::io::sink()).expect("what the test harness says");
        closed
    });
    let closed = closed.await.expect("no panic");
    let closed: usize = closed.trim().parse().expect("a number");
    assert!((1..=200).contains(&closed), "{closed} gave way");
    clients.wait().expect("it ends");
}

/// What follows this word in the first line that has it; other lines are the test harness's.
fn line_of(said: &mut impl BufRead, word: &str) -> String {
    let found = said.lines().map(|line| line.expect("text"));
    let mut found = found.filter_map(|line| Some(line.split_once(word)?.1.to_owned()));
    found.next().expect("the clients say so")
}

/// Connects, says so, and says once it is told to end how many connections were closed.
#[test]
#[ignore = "a process of the test above"]
fn idle_clients() {
    raise_descriptors().expect("the same as for the server");
    let address = env::var(ADDRESS).expect("set by the test above");
    let connect = |n: usize| {
        let mut client = TcpStream::connect(&address).expect("connect");
        // An answer means that the connection was accepted; more that are not would get lost.
        client.write_all(b"GET /nobody HTTP/1.1\r\nhost: x\r\n\r\n").expect("send");
        let read = client.read(&mut [0; 1024]).expect("read");
        assert_ne!(read, 0, "answered");
        if n.is_multiple_of(2) {
            client.write_all(b"GET /fn/a HTTP/1.1\r\nhost: ").expect("send the half of a head");
        }
        client
    };
    let clients: Vec<_> = (0..IDLE).map(connect).collect();
    println!("connected");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("until it is closed");
    let is_closed = |mut client: &TcpStream| {
        client.set_nonblocking(true).expect("a socket");
        // A reset is one, too.
        let outcome = client.read(&mut [0; 1]);
        !outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    println!("closed {}", clients.iter().filter(|client| is_closed(client)).count());
}
