//! What instances with an egress network can reach: one `nft` table for each owner.
//!
//! ```text
//! instance ──► hub: is it its own address? ──► source: may it go there? ──► connection tracking ──►
//!     established ─────────────────────────────────► out, from an address of the host
//!     new ──► is it within the instance's share? ──► out
//! ```
//!
//! What is refused by its address is dropped before connection tracking, so that it costs no place
//! in the kernel's table. Dropped, not rejected: the host's answers would be limited by a rate that
//! all its programs share.

use std::{
    fmt::Display,
    fs,
    io::{self, Write},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    reach::{NEVER, NOT_PUBLIC, Subnet},
    uplinks::Translation,
};

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
    /// The addresses of all owners' instances.
    pub(crate) range: Subnet,
    /// How many addresses the owner can give to instances.
    pub(crate) addresses: u32,
    pub(crate) nameservers: &'a [Ipv4Addr],
    /// What instances may reach although it is not public.
    pub(crate) allowed: &'a [Subnet],
    /// TCP ports whose connections over the loopback interface pass no connection tracking.
    pub(crate) untracked_ports: &'a [u16],
    pub(crate) share: Share,
    pub(crate) translation: &'a Translation,
}

/// What one instance may take of the host's table of tracked connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Flows at a time.
    flows: u32,
    /// New flows in a second.
    rate: u32,
    /// New flows at once, after a rest.
    burst: u32,
}

impl Share {
    /// Of the table of this host.
    pub(crate) fn of_host() -> Self {
        let most = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
        // Without a number connection tracking has not been loaded yet; the kernel's usual table
        // of a machine with 1 GiB has this size.
        Self::of(most.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_536))
    }

    /// A 32nd of the table, so that it takes 32 instances to fill it.
    ///
    /// Not more than 8192: the kernel looks through all flows of an instance when it begins
    /// another. Not less than 64: with fewer, ordinary clients fail.
    fn of(table: u32) -> Self {
        Self::with((table / 32).clamp(64, 8192))
    }

    /// A burst and 30 seconds at this rate make up what the instance may have: so long the kernel
    /// remembers a datagram without an answer. No less than 16, which ordinary clients need.
    pub(crate) fn with(flows: u32) -> Self {
        Self { flows, rate: (flows / 40).max(16), burst: (flows / 4).max(16) }
    }
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

    /// Lets new flows leave from other addresses from now on.
    pub(crate) fn translate(&self, translation: &Translation) -> io::Result<()> {
        let table = &self.table;
        run(&format!(
            "flush chain {table} translated\ntable {table} {{\n    chain translated {{\n{}    }}\n}}\n",
            translation.rules()
        ))
    }

    /// Removes the rules, if there are any.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let table = &self.table;
        run(&format!("table {table}\ndelete table {table}\n"))
    }

    fn text(&self, rules: &Rules<'_>) -> String {
        let Rules { interfaces, all_interfaces, range, addresses, share, translation, .. } = rules;
        let Share { flows, rate, burst } = share;
        let table = &self.table;
        let never = list(&NEVER);
        let not_public = list(&NOT_PUBLIC);
        let allowed = match list(rules.allowed) {
            none if none.is_empty() => none,
            ranges => format!("elements = {{ {ranges} }}"),
        };
        let names = |verdict| match list(rules.nameservers) {
            none if none.is_empty() => none,
            servers => {
                format!(
                    "ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 {verdict}"
                )
            }
        };
        let (names_return, names_goto) = (names("return"), names("goto bounded"));
        let untracked = |direction| match list(rules.untracked_ports) {
            none if none.is_empty() => none,
            ports => format!(
                "{direction} lo tcp dport {{ {ports} }} notrack\n        \
                 {direction} lo tcp sport {{ {ports} }} notrack"
            ),
        };
        let (untracked_in, untracked_out) = (untracked("iif"), untracked("oif"));
        // A set that is full would let everything pass. Only addresses that were checked get into
        // these, and there is room for twice as many.
        let size = 2 * addresses;
        let translated = translation.rules();
        format!(
            r#"table {table} {{
    set allowed {{ type ipv4_addr; flags interval; auto-merge; {allowed} }}
    set rates {{ type ipv4_addr; size {size}; flags dynamic,timeout; timeout 1m; }}
    set flows {{ type ipv4_addr; size {size}; flags dynamic; }}
    chain source {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{interfaces}*" jump from_instance
        {untracked_in}
    }}
    chain sent {{
        type filter hook output priority raw; policy accept;
        {untracked_out}
    }}
    chain from_instance {{
        meta nfproto != ipv4 drop
        fib saddr . iif oif missing drop
        jump destination
    }}
    chain destination {{
        {names_return}
        ip daddr {{ {never} }} drop
        fib daddr type {{ local, broadcast, multicast, anycast }} drop
        ip daddr {range} drop
        ip daddr @allowed return
        ip daddr {{ {not_public} }} drop
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{interfaces}*" jump to_host
    }}
    chain to_host {{
        ct state established,related accept
        ct status confirmed accept
        {names_goto}
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
        ct status confirmed accept
        oifname "{all_interfaces}*" drop
        jump destination
        goto bounded
    }}
    chain bounded {{
        update @rates {{ ip saddr limit rate over {rate}/second burst {burst} packets }} drop
        add @flows {{ ip saddr ct count over {flows} }} drop
        accept
    }}
    chain translate {{
        type nat hook postrouting priority srcnat; policy accept;
        iifname "{interfaces}*" oifname != "{all_interfaces}*" jump translated
    }}
    chain translated {{
{translated}    }}
}}
"#
        )
    }
}

/// Sets the rules of a hub, whose namespace the caller has entered: what comes from an instance
/// has its address, and goes to the host. Nothing here tracks connections.
pub(crate) fn guard_hub(interfaces: &str, uplink: &str) -> io::Result<()> {
    run(&format!(
        r#"table inet hearth {{
    chain before {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{interfaces}*" meta nfproto != ipv4 drop
        iifname "{interfaces}*" fib saddr . iif oif missing drop
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname "{interfaces}*" oifname "{uplink}" accept
        iifname "{uplink}" oifname "{interfaces}*" accept
    }}
}}
"#
    ))
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether somebody else's rules drop what instances send on its way out, as Docker's do. Every
/// table on a hook must agree, so ours cannot allow it.
pub(crate) fn is_forwarding_dropped() -> bool {
    drops_forwarded(&chains())
}

/// Whether somebody translates what programs of this host send, to another port perhaps. The
/// answers can then only be translated back where the connection is tracked.
pub(crate) fn is_output_translated() -> bool {
    let legacy = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    legacy.lines().any(|table| table == "nat") || translates_output(&chains())
}

fn chains() -> String {
    let Some(program) = Firewall::program() else { return String::new() };
    let output = Command::new(program).args(["list", "chains"]).env_clear().output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn drops_forwarded(chains: &str) -> bool {
    chains.lines().any(|line| line.contains("hook forward") && line.contains("policy drop"))
}

fn translates_output(chains: &str) -> bool {
    chains.lines().any(|line| line.contains("type nat hook output"))
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
    fn tables_of_others_that_matter_are_noticed() {
        let chains = |policy| {
            format!(
                "table ip filter {{\n\tchain INPUT {{\n\t\ttype filter hook input priority filter; \
                 policy drop;\n\t}}\n\tchain FORWARD {{\n\t\ttype filter hook forward priority \
                 filter; policy {policy};\n\t}}\n}}\n"
            )
        };
        assert!(drops_forwarded(&chains("drop")));
        assert!(!drops_forwarded(&chains("accept")));
        assert!(!translates_output(&chains("drop")));
        assert!(translates_output("\t\ttype nat hook output priority -100; policy accept;\n"));
    }

    #[test]
    fn a_share_is_a_part_of_the_table_within_reason() {
        let usual = Share::of(262_144);
        assert_eq!(usual, Share { flows: 8192, rate: 204, burst: 2048 });
        assert_eq!(Share::of(1 << 24).flows, 8192);
        assert_eq!(Share::of(65_536).flows, 2048);
        assert_eq!(Share::of(0).flows, 64);
    }
}
