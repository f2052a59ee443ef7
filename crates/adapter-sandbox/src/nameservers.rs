//! Where instances look up names.

use std::{fs, net::Ipv4Addr};

use model::Network;

/// The host's name servers, as seen by instances.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nameservers {
    host: String,
    /// Those that an instance with its own network can reach.
    pub(crate) reachable: Vec<Ipv4Addr>,
}

impl Nameservers {
    /// Reads the host's configuration. A resolver on the host's loopback is no use to an instance
    /// with a network of its own; the servers that systemd's asks in turn are.
    pub(crate) fn of_host() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let host = read("/etc/resolv.conf");
        let mut reachable = parse(&host);
        if reachable.is_empty() {
            reachable = parse(&read("/run/systemd/resolve/resolv.conf"));
        }
        Self { host, reachable }
    }

    /// What an instance with this network finds in its `resolv.conf`.
    pub(crate) fn configuration(&self, network: Network) -> String {
        match network {
            Network::None => String::new(),
            Network::Host => self.host.clone(),
            Network::Egress => {
                self.reachable.iter().map(|server| format!("nameserver {server}\n")).collect()
            }
        }
    }
}

fn parse(configuration: &str) -> Vec<Ipv4Addr> {
    configuration
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
        .filter(|server: &Ipv4Addr| !server.is_loopback() && !server.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_can_be_reached_count() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\nnameserver\t192.0.2.53\n\
                    nameserver fe80::1\nsearch example\nnameserver 198.51.100.53\n";
        let expected = [Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(198, 51, 100, 53)];
        assert_eq!(parse(text), expected);
    }
}
