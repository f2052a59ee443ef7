//! What instances with an egress network can reach: one `nft` table for each owner.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

/// Everything that is not the public Internet.
const NOT_PUBLIC: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
    172.16.0.0/12, 192.168.0.0/16, 224.0.0.0/4, 240.0.0.0/4";

/// The rules of one owner.
pub(crate) struct Firewall {
    table: String,
}

/// What the rules are about.
pub(crate) struct Rules<'a> {
    /// The beginning of the names of the owner's interfaces.
    pub(crate) interfaces: &'a str,
    /// The beginning of the names of all owners' interfaces.
    pub(crate) all_interfaces: &'a str,
    pub(crate) nameservers: &'a [Ipv4Addr],
}

impl Firewall {
    /// The table of this owner, whether it exists or not.
    pub(crate) fn of(owner: u32) -> Self {
        Self { table: format!("inet hearth_{owner}") }
    }

    /// Whether the program is there.
    pub(crate) fn program() -> Option<&'static Path> {
        ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"]
            .map(Path::new)
            .into_iter()
            .find(|p| p.exists())
    }

    /// Puts the rules in force, instead of what the table had.
    pub(crate) fn raise(&self, rules: &Rules<'_>) -> io::Result<()> {
        let table = &self.table;
        run(&format!("table {table}\ndelete table {table}\n{}", self.text(rules)))
    }

    /// Removes the rules, if there are any.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let table = &self.table;
        run(&format!("table {table}\ndelete table {table}\n"))
    }

    fn text(&self, rules: &Rules<'_>) -> String {
        let Rules { interfaces, all_interfaces, nameservers } = rules;
        let table = &self.table;
        let servers: Vec<String> = nameservers.iter().map(ToString::to_string).collect();
        let names = match servers.join(", ") {
            none if none.is_empty() => String::new(),
            servers => {
                format!("ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept")
            }
        };
        format!(
            r#"table {table} {{
    chain source {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{interfaces}*" meta nfproto ipv6 drop
        iifname "{interfaces}*" fib saddr . iif oif missing drop
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{interfaces}*" jump to_host
    }}
    chain to_host {{
        ct state established,related accept
        {names}
        drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{interfaces}*" jump outwards
        oifname "{interfaces}*" ct state established,related accept
        oifname "{interfaces}*" drop
    }}
    chain outwards {{
        ct state invalid drop
        ct state established,related accept
        oifname "{all_interfaces}*" drop
        {names}
        ip daddr {{ {NOT_PUBLIC} }} drop
    }}
    chain translate {{
        type nat hook postrouting priority srcnat; policy accept;
        iifname "{interfaces}*" oifname != "{all_interfaces}*" masquerade
    }}
}}
"#
        )
    }
}

/// Whether somebody else's rules drop what instances send on its way out, as Docker's do. Every
/// table on a hook must agree, so ours cannot allow it.
pub(crate) fn is_forwarding_dropped() -> bool {
    let Some(program) = Firewall::program() else { return false };
    let output = Command::new(program).args(["list", "chains"]).env_clear().output();
    output.is_ok_and(|output| drops_forwarded(&String::from_utf8_lossy(&output.stdout)))
}

fn drops_forwarded(chains: &str) -> bool {
    chains.lines().any(|line| line.contains("hook forward") && line.contains("policy drop"))
}

fn run(rules: &str) -> io::Result<()> {
    let program = Firewall::program().ok_or(io::ErrorKind::NotFound)?;
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft: {}", said.lines().next().unwrap_or("no reason given"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_drops_what_is_forwarded_is_noticed() {
        let chains = |policy| {
            format!(
                "table ip filter {{\n\tchain INPUT {{\n\t\ttype filter hook input priority filter; \
                 policy drop;\n\t}}\n\tchain FORWARD {{\n\t\ttype filter hook forward priority \
                 filter; policy {policy};\n\t}}\n}}\n"
            )
        };
        assert!(drops_forwarded(&chains("drop")));
        assert!(!drops_forwarded(&chains("accept")));
    }
}
