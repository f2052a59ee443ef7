//! A piece of "Internet" behind a cable of this host.

use std::{net::Ipv4Addr, path::Path, process::Command, time::Duration};

use crate::lab::{Directory, Outcome, is_root};

/// Has public and other addresses on one link. On each of them it greets whoever connects to
/// [`Self::GREETER`], says to whoever sends a datagram to [`Self::TICKER`] which address it sees,
/// again and again, and answers on the port of name servers.
pub(crate) struct Internet {
    namespace: String,
    link: String,
    server: std::process::Child,
    _directory: Directory,
}

impl Internet {
    pub(crate) const GREETER: u16 = 8080;
    pub(crate) const TICKER: u16 = 8081;
    /// Globally reachable, and nobody's: of a range for relays of multicast (RFC 7450).
    pub(crate) const PUBLIC: &str = "192.52.193.1";
    pub(crate) const PRIVATE: &str = "10.77.77.1";
    /// One of each range that is special in another way, but for those that a host may be in.
    pub(crate) const SPECIAL: [&str; 6] =
        ["100.64.77.1", "192.0.0.9", "192.88.99.1", "198.18.77.1", "198.51.100.1", "203.0.113.1"];

    /// The host's address in the network of one of these.
    pub(crate) fn host_beside(address: &str) -> String {
        let [a, b, c, _] = address.parse::<Ipv4Addr>().expect("an address").octets();
        format!("{a}.{b}.{c}.254")
    }

    /// Makes it, or says why it cannot be made here.
    pub(crate) fn make() -> Result<Self, Outcome> {
        let skipped = |reason: &str| Err(Outcome::Skipped(reason.into()));
        if !is_root() {
            return skipped("only root can make a network namespace");
        }
        if !Path::new("/usr/bin/python3").exists() {
            return skipped("no Python in /usr/bin");
        }
        let directory = Directory::new();
        let namespace = format!("hearth-test-{}", std::process::id());
        let link = format!("hti{}", std::process::id() % 100_000);
        let addresses = [&[Self::PUBLIC, Self::PRIVATE], &Self::SPECIAL[..]].concat();
        let mut steps = vec![
            format!("netns add {namespace}"),
            format!("link add {link} type veth peer name eth0 netns {namespace}"),
            format!("link set {link} up"),
            format!("-n {namespace} link set eth0 up"),
            format!("-n {namespace} link set lo up"),
        ];
        for address in addresses {
            steps.push(format!("addr add {}/24 dev {link}", Self::host_beside(address)));
            steps.push(format!("-n {namespace} addr add {address}/24 dev eth0"));
        }
        if !steps.iter().all(|step| ip(step)) {
            remove(&namespace, &link);
            return skipped("could not make a network namespace with `ip`");
        }
        let ready = directory.path().join("ready");
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, "/usr/bin/python3", "-c", SERVER])
            .args([Self::GREETER.to_string(), Self::TICKER.to_string()])
            .arg(&ready)
            .spawn()
            .expect("`ip` has just worked");
        let internet = Self { namespace, link, server, _directory: directory };
        let is_ready = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            ready.exists()
        });
        if is_ready { Ok(internet) } else { skipped("could not start a server in a namespace") }
    }

    /// Replaces an address of the host on this link.
    pub(crate) fn renumber(&self, from: &str, to: &str) {
        assert!(ip(&format!("addr del {from}/24 dev {}", self.link)));
        assert!(ip(&format!("addr add {to}/24 dev {}", self.link)));
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        remove(&self.namespace, &self.link);
    }
}

/// What runs in the namespace.
const SERVER: &str = "
import selectors, socket, sys
greeter_port, ticker_port = map(int, sys.argv[1:3])
selector = selectors.DefaultSelector()
greeter = socket.create_server(('0.0.0.0', greeter_port), backlog=100)
names = socket.create_server(('0.0.0.0', 53))
def udp(port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(('0.0.0.0', port))
    return server
ticker, questions = udp(ticker_port), udp(53)
for server in greeter, names, ticker, questions:
    server.setblocking(False)
    selector.register(server, selectors.EVENT_READ)
open(sys.argv[3], 'w').close()
peers = {}
while True:
    for key, _ in selector.select(0.05):
        server = key.fileobj
        if server in (greeter, names):
            connection, peer = server.accept()
            connection.sendall(b'greetings to ' + peer[0].encode())
            connection.close()
        elif server is ticker:
            peers[server.recvfrom(100)[1]] = True
        else:
            server.sendto(b'an answer', server.recvfrom(100)[1])
    for peer in list(peers)[-20:]:
        ticker.sendto(b'you are ' + peer[0].encode(), peer)
";

/// The link by itself: somebody's mount namespace may keep the network namespace for a while.
fn remove(namespace: &str, link: &str) {
    ip(&format!("link del {link}"));
    ip(&format!("netns del {namespace}"));
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}
