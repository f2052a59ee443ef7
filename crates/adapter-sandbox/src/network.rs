//! Networks for instances. Where the launcher is root they are made before they are needed, by the
//! launcher itself: so they belong to the host's user namespace, and whatever an instance becomes
//! in its own, it cannot change them.
//!
//! ```text
//! instance ── eth0 10.199.0.1 ════ 10.199.0.0 hth0n0 ── host ── NAT ── Internet
//! ```

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::AsFd,
    time::Duration,
};

use model::Network;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::{
    fault::{Fault, Step},
    firewall::{Firewall, Rules},
    nameservers::Nameservers,
    netlink::{End, LOOPBACK, Netlink},
    owner, sys,
    wire::Settings,
};

/// The beginning of the names of all interfaces that instances are connected to.
pub(crate) const INTERFACES: &str = "hth";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Where interface numbers of ours begin: far above what the kernel gives out by itself.
const FIRST_INDEX: u32 = 0x2000_0000;

/// The interface inside an instance.
const INSIDE: End<'static> = End { name: "eth0", index: 2 };

/// Numbers of just removed pairs may still be taken for a moment.
const ATTEMPTS: u32 = 64;

/// A network namespace that belongs to one instance. The kernel removes it, with both ends of its
/// cable, after the last process in it and this are gone.
#[derive(Debug)]
pub(crate) struct Lease(File);

/// The networks of one owner.
pub(crate) struct Networks {
    /// Missing without root.
    maker: Option<Maker>,
    /// The oldest first.
    stock: Vec<(Network, Lease)>,
    stock_size: usize,
    /// Why there is no egress, if there is none.
    pub(crate) no_egress: Option<String>,
    /// Whether the host forwarded nothing before.
    pub(crate) has_enabled_forwarding: bool,
}

struct Maker {
    host: File,
    netlink: Netlink,
    range: Range,
    prefix: String,
    next: u32,
}

/// The addresses of one owner: a sixteenth of all.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u32,
    /// How many pairs of addresses there are.
    pairs: u32,
    first_index: u32,
}

impl Networks {
    pub(crate) fn new(
        settings: &Settings,
        owner: u32,
        is_root: bool,
        nameservers: &Nameservers,
    ) -> Result<Self, Fault> {
        let stock = Vec::new();
        let stock_size = settings.network_stock;
        if !is_root {
            let why = "without root an instance cannot be connected to the host's network";
            return Ok(Self {
                maker: None,
                stock,
                stock_size: 0,
                no_egress: Some(why.into()),
                has_enabled_forwarding: false,
            });
        }
        let maker = Maker::new(settings, owner).step("prepare networks")?;
        let rules = Rules {
            interfaces: &maker.prefix,
            all_interfaces: INTERFACES,
            nameservers: &nameservers.reachable,
        };
        let open = |()| enable_forwarding();
        let (no_egress, has_enabled_forwarding) = match Firewall::of(owner)
            .raise(&rules)
            .and_then(open)
        {
            Ok(enabled) => (None, enabled),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Some("`nft` is not installed (package nftables)".to_owned()), false)
            }
            Err(error) => (Some(format!("the firewall rules could not be set: {error}")), false),
        };
        Ok(Self { maker: Some(maker), stock, stock_size, no_egress, has_enabled_forwarding })
    }

    /// A namespace for an instance, or none if it is to be made together with its process.
    pub(crate) fn lease(&mut self, network: Network) -> Result<Option<Lease>, Fault> {
        if network == Network::Egress
            && let Some(why) = &self.no_egress
        {
            return Err(Fault::new(format!("set up an egress network: {why}"), libc::ENOSYS));
        }
        let Some(maker) = &mut self.maker else { return Ok(None) };
        if network == Network::Host {
            return Ok(None);
        }
        if let Some(at) = self.stock.iter().position(|(kind, _)| *kind == network) {
            return Ok(Some(self.stock.remove(at).1));
        }
        maker.make(network).map(Some).step("make a network")
    }

    /// Adds one network to the stock, if it is not full.
    pub(crate) fn refill(&mut self) {
        let (Some(kind), Some(maker)) = (self.wanted(), &mut self.maker) else { return };
        match maker.make(kind) {
            Ok(lease) => self.stock.push((kind, lease)),
            // Whoever needs one hears why.
            Err(_) => self.stock_size = 0,
        }
    }

    /// Whether the stock is not full.
    pub(crate) fn is_wanting(&self) -> bool {
        self.wanted().is_some()
    }

    fn wanted(&self) -> Option<Network> {
        self.maker.as_ref()?;
        let has_egress = self.no_egress.is_none();
        let count = |network| self.stock.iter().filter(|(kind, _)| *kind == network).count();
        [Network::None, Network::Egress]
            .into_iter()
            .filter(|network| *network == Network::None || has_egress)
            .find(|network| count(*network) < self.stock_size)
    }

    /// Does something inside a network namespace.
    pub(crate) fn within<T>(
        &self,
        lease: Option<&Lease>,
        work: impl FnOnce() -> T,
    ) -> io::Result<T> {
        match (&self.maker, lease) {
            (Some(maker), Some(lease)) => {
                enter(&lease.0)?;
                let result = work();
                maker.leave();
                Ok(result)
            }
            _ => Ok(work()),
        }
    }

    /// Removes everything. The instances are gone already.
    pub(crate) fn finish(self, owner: u32) {
        drop(self.stock);
        let Some(maker) = self.maker else { return };
        clear(owner);
        // The kernel removes interfaces when it gets round to it.
        for _ in 0..500 {
            if !maker.has_interfaces() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes what an owner's rules left behind. Its interfaces went with its processes.
pub(crate) fn clear(owner: u32) {
    if Firewall::program().is_some() {
        let _ = Firewall::of(owner).remove();
    }
}

impl Maker {
    fn new(settings: &Settings, owner: u32) -> io::Result<Self> {
        let (address, prefix) = settings.network_range;
        Ok(Self {
            host: File::open("/proc/self/ns/net")?,
            netlink: Netlink::open()?,
            range: Range::new(address, prefix, owner),
            prefix: format!("{INTERFACES}{owner}n"),
            next: 0,
        })
    }

    fn make(&mut self, network: Network) -> io::Result<Lease> {
        sys::unshare(UnshareFlags::NEWNET)?;
        let made = self.make_here(network);
        self.leave();
        let (lease, pair) = made?;
        if let Some(pair) = pair {
            let (host, _) = self.range.addresses(pair);
            self.netlink.raise(self.range.index(pair))?;
            self.netlink.add_address(self.range.index(pair), host, 31)?;
        }
        Ok(lease)
    }

    /// Sets up the namespace that the launcher has just entered.
    fn make_here(&mut self, network: Network) -> io::Result<(Lease, Option<u32>)> {
        let lease = Lease(File::open("/proc/self/ns/net")?);
        let netlink = Netlink::open()?;
        netlink.raise(LOOPBACK)?;
        if network != Network::Egress {
            return Ok((lease, None));
        }
        // Before there is an interface that could get an address. Absent if the host has no IPv6.
        let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        let pair = self.connect(&netlink)?;
        let (host, inside) = self.range.addresses(pair);
        netlink.raise(INSIDE.index)?;
        netlink.add_address(INSIDE.index, inside, 31)?;
        netlink.add_default_route(host)?;
        Ok((lease, Some(pair)))
    }

    fn connect(&mut self, netlink: &Netlink) -> io::Result<u32> {
        for _ in 0..ATTEMPTS.min(self.range.pairs) {
            let pair = self.next;
            self.next = (self.next + 1) % self.range.pairs;
            let name = format!("{}{pair}", self.prefix);
            let peer = End { name: &name, index: self.range.index(pair) };
            match netlink.make_pair(&INSIDE, &peer, self.host.as_fd()) {
                Err(error) if is_taken(&error) => {}
                result => return result.map(|()| pair),
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    /// Returns to the host's namespace. A launcher in a wrong one must not go on.
    fn leave(&self) {
        if enter(&self.host).is_err() {
            sys::exit(1);
        }
    }

    fn has_interfaces(&self) -> bool {
        let list = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
        list.lines().any(|line| line.trim_start().starts_with(&self.prefix))
    }
}

impl Range {
    fn new(address: Ipv4Addr, prefix: u8, owner: u32) -> Self {
        let whole = 1u32 << (32 - u32::from(prefix.clamp(8, 24)));
        let size = whole / owner::MOST;
        let first = (address.to_bits() & !(whole - 1)) + owner * size;
        Self { first, pairs: size / 2, first_index: FIRST_INDEX + owner * size }
    }

    fn index(self, pair: u32) -> u32 {
        self.first_index + pair
    }

    /// The host's address and the instance's: a network of exactly two.
    fn addresses(self, pair: u32) -> (Ipv4Addr, Ipv4Addr) {
        let first = self.first + 2 * pair;
        (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first + 1))
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY))
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Whether it was necessary.
fn enable_forwarding() -> io::Result<bool> {
    let is_off = fs::read_to_string(FORWARDING)?.trim() == "0";
    if is_off {
        fs::write(FORWARDING, "1")?;
    }
    Ok(is_off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_share_no_address() {
        let range = |owner| Range::new(Ipv4Addr::new(10, 199, 0, 0), 16, owner);
        let last = range(0).pairs - 1;
        assert_eq!(
            range(0).addresses(0),
            (Ipv4Addr::new(10, 199, 0, 0), Ipv4Addr::new(10, 199, 0, 1))
        );
        assert_eq!(range(0).addresses(last).1, Ipv4Addr::new(10, 199, 15, 255));
        assert_eq!(range(1).addresses(0).0, Ipv4Addr::new(10, 199, 16, 0));
        assert_eq!(range(15).addresses(last).1, Ipv4Addr::new(10, 199, 255, 255));
        assert!(range(0).index(last) < range(1).index(0));
    }
}
