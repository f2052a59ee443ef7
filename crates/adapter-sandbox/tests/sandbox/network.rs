//! What each network reaches.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    os::{linux::net::SocketAddrExt, unix::net as unix},
};

use adapter::{Adapter, AdapterError};
use model::{LaunchSpec, Network};

use crate::{
    Test,
    lab::{Lab, Outcome},
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

pub(crate) fn probe(
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
pub(crate) fn greet(listener: TcpListener, text: &'static str) -> SocketAddr {
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut connection| connection.write_all(text.as_bytes()));
        }
    });
    address
}

pub(crate) fn listen(address: &str) -> TcpListener {
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
