//! What each network reaches.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{linux::net::SocketAddrExt, unix::net as unix},
    path::Path,
    process::Command,
};

use adapter::{Adapter, AdapterError};
use model::{LaunchSpec, Network};

use crate::{
    Test,
    lab::{Directory, Lab, Outcome, is_root},
};

pub(crate) const TESTS: &[Test] = &[
    ("without_a_network_there_is_loopback_only", |lab| {
        Box::pin(without_a_network_there_is_loopback_only(lab))
    }),
    ("the_host_network_is_shared", |lab| Box::pin(the_host_network_is_shared(lab))),
    ("abstract_sockets_are_out_of_reach", |lab| Box::pin(abstract_sockets_are_out_of_reach(lab))),
    ("egress_is_refused_where_it_cannot_work", |lab| {
        Box::pin(egress_is_refused_where_it_cannot_work(lab))
    }),
    ("egress_reaches_the_internet_only", |lab| Box::pin(egress_reaches_the_internet_only(lab))),
];

/// Connects to each `address:port` and says what came of it, then what its own address is.
const PROBE: &str = r#"
import socket, sys
def attempt(target):
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=1) as connection:
            connection.settimeout(5)
            return "got " + connection.recv(100).decode()
    except OSError as error:
        return "failed " + type(error).__name__
for target in sys.argv[1:]:
    print(target, attempt(target), flush=True)
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    own.connect(("198.51.100.1", 9))
    print("own", own.getsockname()[0], flush=True)
except OSError:
    print("own none", flush=True)
"#;

fn probe(
    lab: &Lab,
    name: &str,
    network: Network,
    targets: &[String],
) -> Result<LaunchSpec, Outcome> {
    let mut spec = lab.python(name, PROBE)?;
    spec.network = network;
    spec.command.extend_from_slice(targets);
    Ok(spec)
}

/// Greets whoever connects with `text`, as long as the test runs.
fn greet(listener: TcpListener, text: &'static str) -> SocketAddr {
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut connection| connection.write_all(text.as_bytes()));
        }
    });
    address
}

fn listen(address: &str) -> TcpListener {
    TcpListener::bind((address, 0)).expect("a port")
}

async fn without_a_network_there_is_loopback_only(lab: Lab) -> Outcome {
    let address = greet(listen("127.0.0.1"), "host");
    let targets = [address.to_string(), "198.51.100.1:80".into()];
    let spec = match probe(&lab, "none", Network::None, &targets) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let (output, _) = lab.run(&spec).await;
    assert!(!output.contains("got"), "{output}");
    let script = "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '";
    let spec = lab.script(&crate::lab::id("devices"), script);
    assert_eq!(lab.run(&spec).await.0, "lo\n");

    let own = "
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname(), timeout=5)
print('loopback works')
";
    let spec = lab.python("loopback", own).unwrap_or_else(|_| unreachable!("found above"));
    assert_eq!(lab.run(&spec).await.0, "loopback works\n");
    Outcome::Passed
}

async fn the_host_network_is_shared(lab: Lab) -> Outcome {
    let address = greet(listen("127.0.0.1"), "host");
    let spec = match probe(&lab, "host", Network::Host, &[address.to_string()]) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    let (output, _) = lab.run(&spec).await;
    assert!(output.contains("got host"), "{output}");
    Outcome::Passed
}

async fn abstract_sockets_are_out_of_reach(lab: Lab) -> Outcome {
    let name = format!("hearth-sandbox-test-{}", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = unix::UnixListener::bind_addr(&address).expect("free");
    let program = format!(
        "
import socket
try:
    socket.socket(socket.AF_UNIX).connect('\\0{name}')
    print('connected')
except OSError as error:
    print(error.strerror)
"
    );
    let scoped = !lab.adapter.weaknesses().iter().any(|weakness| weakness.contains("Landlock"));
    for (network, expected) in
        [(Network::None, "Connection refused\n"), (Network::Host, "Operation not permitted\n")]
    {
        if network == Network::Host && !scoped {
            return Outcome::Skipped("this kernel's Landlock cannot scope abstract sockets".into());
        }
        let mut spec = match lab.python("abstract", &program) {
            Ok(spec) => spec,
            Err(skipped) => return skipped,
        };
        spec.network = network;
        assert_eq!(lab.run(&spec).await.0, expected, "{network}");
    }
    Outcome::Passed
}

async fn egress_is_refused_where_it_cannot_work(lab: Lab) -> Outcome {
    if lab.adapter.no_egress().is_none() {
        return Outcome::Skipped("it works here".into());
    }
    let mut spec = lab.script(&crate::lab::id("egress"), "true");
    spec.network = Network::Egress;
    let refused = lab.adapter.launch(&spec, None).await;
    assert!(matches!(refused, Err(AdapterError::Unsupported { .. })), "{refused:?}");
    assert_eq!(lab.adapter.recover().await.expect("recover"), []);
    Outcome::Passed
}

/// A piece of "Internet" behind a cable of the host: a public and a private address on one link.
struct Internet {
    namespace: String,
    server: std::process::Child,
    _directory: Directory,
}

impl Internet {
    const PUBLIC: &str = "198.51.100.1";
    const PRIVATE: &str = "10.77.77.1";

    /// With a greeter on this port of all its addresses, which says whom it greets.
    fn make(port: u16) -> Option<Self> {
        let directory = Directory::new();
        let namespace = format!("hearth-test-{}", std::process::id());
        let link = format!("hti{}", std::process::id() % 100_000);
        let steps = [
            format!("netns add {namespace}"),
            format!("link add {link} type veth peer name eth0 netns {namespace}"),
            format!("addr add 198.51.100.254/24 dev {link}"),
            format!("addr add 10.77.77.254/24 dev {link}"),
            format!("link set {link} up"),
            format!("-n {namespace} addr add 198.51.100.1/24 dev eth0"),
            format!("-n {namespace} addr add 10.77.77.1/24 dev eth0"),
            format!("-n {namespace} link set eth0 up"),
            format!("-n {namespace} link set lo up"),
        ];
        if !steps.iter().all(|step| ip(step)) {
            ip(&format!("netns del {namespace}"));
            return None;
        }
        let ready = directory.path().join("ready");
        let program = format!(
            "
import socket
server = socket.create_server(('0.0.0.0', {port}))
open('{}', 'w').close()
while True:
    connection, peer = server.accept()
    connection.sendall(b'greetings to ' + peer[0].encode())
    connection.close()
",
            ready.display()
        );
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, "/usr/bin/python3", "-c", &program])
            .spawn()
            .ok()?;
        let internet = Self { namespace, server, _directory: directory };
        let is_ready = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            ready.exists()
        });
        is_ready.then_some(internet)
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        ip(&format!("netns del {}", self.namespace));
    }
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

async fn egress_reaches_the_internet_only(lab: Lab) -> Outcome {
    const PORT: u16 = 8080;
    if !is_root() || lab.adapter.no_egress().is_some() {
        return Outcome::Skipped("no egress network here".into());
    }
    if !Path::new("/usr/bin/python3").exists() {
        return Outcome::Skipped("no Python in /usr/bin".into());
    }
    let Some(_internet) = Internet::make(PORT) else {
        return Outcome::Skipped("could not make a network namespace with `ip`".into());
    };
    let own = greet(listen("0.0.0.0"), "host").port();

    // Another instance, with a listener that must not be reached.
    let neighbour = "
import socket
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.connect(('198.51.100.1', 9))
server = socket.create_server(('0.0.0.0', 8080))
print(own.getsockname()[0], flush=True)
while True:
    server.accept()[0].sendall(b'neighbour')
";
    let mut other = match lab.python("neighbour", neighbour) {
        Ok(spec) => spec,
        Err(skipped) => return skipped,
    };
    other.network = Network::Egress;
    let mut output = lab.launch(&other).await;
    let neighbour: Ipv4Addr = output.line().await.parse().expect("an address");
    let gateway = Ipv4Addr::from_bits(neighbour.to_bits() - 1);

    let public = format!("{}:{PORT}", Internet::PUBLIC);
    let mut refused: Vec<String> = [
        "127.0.0.1",
        "198.51.100.254", // the host, as the Internet sees it
        "10.77.77.254",   // the host, on the private network
        &gateway.to_string(),
    ]
    .map(|address| format!("{address}:{own}"))
    .to_vec();
    refused.push(format!("{}:{PORT}", Internet::PRIVATE));
    refused.push(format!("{neighbour}:{PORT}"));
    refused.push("169.254.169.254:80".into());
    refused.push(format!("[::1]:{own}"));
    let targets = [vec![public.clone()], refused.clone()].concat();
    let spec = probe(&lab, "egress", Network::Egress, &targets);
    let (said, _) = lab.run(&spec.unwrap_or_else(|_| unreachable!("found above"))).await;
    assert!(said.contains(&format!("{public} got greetings to 198.51.100.254")), "NAT: {said}");
    for target in &refused {
        assert!(said.contains(&format!("{target} failed")), "{target}: {said}");
    }
    // The host itself reaches what is refused, so it was not just absent.
    let from_host = std::net::TcpStream::connect((Internet::PRIVATE, PORT));
    assert!(from_host.is_ok(), "{from_host:?}");
    lab.stop(&other.id).await;
    lab.adapter.shutdown().await;
    Outcome::Passed
}
