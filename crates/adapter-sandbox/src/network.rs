//! Networks for instances. Where the launcher is root they are made before they are needed, by the
//! launcher itself: so they belong to the host's user namespace, and whatever an instance becomes
//! in its own, it cannot change them.
//!
//! ```text
//! instance ── eth0 10.199.0.3 ════ 10.199.0.2 hth0n1 ──┐
//! instance ── eth0 10.199.0.5 ════ 10.199.0.4 hth0n2 ── hub ── 10.199.0.1 ═══ 10.199.0.0 hth0n0 ── host
//! ```
//!
//! The *hub* is a network namespace that only forwards. The host tracks the connections and
//! translates the addresses; the hub sees to it that an instance sends from its own address and
//! only towards the host. It is there because interfaces come and go with instances: when one goes
//! down where connections are tracked, the kernel's masquerading looks through all of the machine's
//! connections, and did so on kernels that have it built in when no rule of ours used it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use model::Network;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::{
    addresses::{Addresses, Range},
    fault::{Fault, Step},
    firewall::{self, Firewall, Rules, Share},
    nameservers::Nameservers,
    netlink::{End, LOOPBACK, Netlink, Way},
    reach::{EVERYWHERE, Subnet},
    sys,
    uplinks::{Translation, Uplinks},
    wire::Settings,
};

/// The beginning of the names of all interfaces that instances are connected to.
pub(crate) const INTERFACES: &str = "hth";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// The pair that connects the hub with the host.
pub(crate) const HUB: u32 = 0;

/// The hub's interface towards the host.
const UPLINK: End<'static> = End { name: "uplink", index: 2 };

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
    /// What the rules name as the senders' addresses.
    translation: Translation,
    /// Missing where there is no egress, or where addresses cannot be watched.
    uplinks: Option<Uplinks>,
    /// What the operator should read, once.
    pub(crate) warnings: Vec<String>,
}

struct Maker {
    host: File,
    /// Missing where there is no egress.
    hub: Option<Hub>,
    addresses: Addresses,
    owner: u32,
    prefix: String,
}

/// The namespace between instances and the host. It goes, with all its interfaces, when this does.
struct Hub {
    namespace: File,
    netlink: Netlink,
}

impl Networks {
    pub(crate) fn new(
        settings: &Settings,
        owner: u32,
        is_root: bool,
        nameservers: &Nameservers,
    ) -> Result<Self, Fault> {
        let mut networks = Self {
            maker: None,
            stock: Vec::new(),
            stock_size: 0,
            no_egress: None,
            has_enabled_forwarding: false,
            translation: Translation::Masquerade,
            uplinks: None,
            warnings: Vec::new(),
        };
        if !is_root {
            let why = "without root an instance cannot be connected to the host's network";
            networks.no_egress = Some(why.into());
            return Ok(networks);
        }
        networks.stock_size = settings.network_stock;
        networks.maker = Some(Maker::new(settings, owner).step("prepare networks")?);
        if let Err(error) = networks.open(settings, nameservers) {
            networks.uplinks = None;
            networks.no_egress = Some(match error.kind() {
                io::ErrorKind::NotFound => "`nft` is not installed (package nftables)".to_owned(),
                _ => format!("the networks' rules could not be set: {error}"),
            });
        }
        Ok(networks)
    }

    /// Sets the rules, and only then lets the host forward.
    fn open(&mut self, settings: &Settings, nameservers: &Nameservers) -> io::Result<()> {
        let Some(maker) = &mut self.maker else { return Ok(()) };
        let watched = Uplinks::watch().and_then(|uplinks| Ok((uplinks.translation()?, uplinks)));
        match watched {
            Ok((translation, uplinks)) => {
                self.translation = translation;
                self.uplinks = Some(uplinks);
            }
            Err(error) => self.warnings.push(cannot_name_addresses(&error)),
        }
        let (address, prefix) = settings.network_range;
        maker.make_hub()?;
        let is_output_translated = firewall::is_output_translated();
        Firewall::of(maker.owner).raise(&Rules {
            interfaces: &maker.prefix,
            all_interfaces: INTERFACES,
            range: Subnet::around(address, prefix.clamp(8, 24)),
            addresses: maker.addresses.range.pairs,
            nameservers: &nameservers.reachable,
            allowed: &settings.allowed_networks,
            untracked_ports: if is_output_translated { &[] } else { &settings.untracked_ports },
            share: settings.flows_per_instance.map_or_else(Share::of_host, Share::with),
            translation: &self.translation,
        })?;
        maker.addresses.begin(&[]);
        self.has_enabled_forwarding = enable_forwarding()?;
        Ok(())
    }

    /// Readable when the host's addresses may have changed: see [`Self::follow`].
    pub(crate) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.uplinks.as_ref().map(Uplinks::changes)
    }

    /// Follows the host's addresses: what is new leaves from those that it has now, and what left
    /// from others is forgotten, so that it starts anew.
    pub(crate) fn follow(&mut self) {
        let (Some(uplinks), Some(maker)) = (&self.uplinks, &mut self.maker) else { return };
        if !uplinks.has_changed() {
            return;
        }
        let translation = uplinks.translation().unwrap_or_else(|error| {
            self.warnings.push(cannot_name_addresses(&error));
            Translation::Masquerade
        });
        if translation == self.translation {
            return;
        }
        if let Err(error) = Firewall::of(maker.owner).translate(&translation) {
            let text =
                "the host's addresses changed, and the rules of egress networks could not be";
            self.warnings.push(format!("{text}: {error}"));
            return;
        }
        maker.addresses.give_up(self.translation.given_up_by(&translation));
        self.translation = translation;
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

    /// Adds one network to the stock, if it is not full, or does a part of what must come before.
    pub(crate) fn refill(&mut self) {
        let wanted = self.wanted();
        let Some(maker) = &mut self.maker else { return };
        if maker.addresses.is_forgetting() {
            maker.addresses.go_on();
            self.warnings.extend(maker.addresses.take_complaint());
            return;
        }
        let Some(kind) = wanted else { return };
        match maker.make(kind) {
            Ok(lease) => self.stock.push((kind, lease)),
            // Whoever needs one hears why.
            Err(_) => self.stock_size = 0,
        }
    }

    /// Whether [`Self::refill`] has something to do.
    pub(crate) fn is_wanting(&self) -> bool {
        let is_forgetting = |maker: &Maker| maker.addresses.is_forgetting();
        self.wanted().is_some() || self.maker.as_ref().is_some_and(is_forgetting)
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
        let Some(mut maker) = self.maker else { return };
        clear(owner);
        maker.hub = None;
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
            hub: None,
            addresses: Addresses::new(Range::new(address, prefix, owner)),
            owner,
            prefix: format!("{INTERFACES}{owner}n"),
        })
    }

    /// Makes the hub, and connects it with the host.
    fn make_hub(&mut self) -> io::Result<()> {
        let (range, host) = (self.addresses.range, Netlink::open()?);
        // A launcher of this number that was killed a moment ago may still have its end of the
        // cable: the kernel removes a namespace, with what is in it, when it gets round to it.
        host.remove(range.index(HUB))?;
        sys::unshare(UnshareFlags::NEWNET)?;
        let made = self.make_hub_here();
        self.leave();
        self.hub = Some(made?);
        let (here, there) = range.addresses(HUB);
        host.raise(range.index(HUB))?;
        host.add_address(range.index(HUB), here, 31)?;
        host.add_route(range.whole(), Way::Gateway(there))
    }

    fn make_hub_here(&self) -> io::Result<Hub> {
        let hub = Hub { namespace: File::open("/proc/self/ns/net")?, netlink: Netlink::open()? };
        firewall::guard_hub(&self.prefix, UPLINK.name)?;
        let _ = fs::write(NO_IPV6, "1");
        fs::write(FORWARDING, "1")?;
        let range = self.addresses.range;
        let peer = format!("{}{HUB}", self.prefix);
        let peer = End { name: &peer, index: range.index(HUB) };
        hub.netlink.make_pair(&UPLINK, &peer, self.host.as_fd())?;
        let (host, here) = range.addresses(HUB);
        hub.netlink.raise(UPLINK.index)?;
        hub.netlink.add_address(UPLINK.index, here, 31)?;
        hub.netlink.add_route(EVERYWHERE, Way::Gateway(host))?;
        // What is for an instance that is gone must not go back to the host.
        hub.netlink.add_route(range.whole(), Way::Nowhere)?;
        Ok(hub)
    }

    fn make(&mut self, network: Network) -> io::Result<Lease> {
        let Some(hub) = self.hub.as_ref().filter(|_| network == Network::Egress) else {
            return self.make_with(None);
        };
        for _ in 0..ATTEMPTS {
            let there = || hub.connected(&self.host, &self.prefix);
            let pair = self.addresses.take(there)?;
            match self.make_with(Some((hub, pair))) {
                Err(error) if is_taken(&error) => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    fn make_with(&self, place: Option<(&Hub, u32)>) -> io::Result<Lease> {
        sys::unshare(UnshareFlags::NEWNET)?;
        let made = self.make_here(place);
        self.leave();
        let lease = made?;
        if let Some((hub, pair)) = place {
            let range = self.addresses.range;
            hub.netlink.raise(range.index(pair))?;
            hub.netlink.add_address(range.index(pair), range.addresses(pair).0, 31)?;
        }
        Ok(lease)
    }

    /// Sets up the namespace that the launcher has just entered.
    fn make_here(&self, place: Option<(&Hub, u32)>) -> io::Result<Lease> {
        let lease = Lease(File::open("/proc/self/ns/net")?);
        let netlink = Netlink::open()?;
        netlink.raise(LOOPBACK)?;
        let Some((hub, pair)) = place else { return Ok(lease) };
        // Before there is an interface that could get an address. Absent if the host has no IPv6.
        let _ = fs::write(NO_IPV6, "1");
        let name = format!("{}{pair}", self.prefix);
        let range = self.addresses.range;
        let peer = End { name: &name, index: range.index(pair) };
        netlink.make_pair(&INSIDE, &peer, hub.namespace.as_fd())?;
        let (gateway, inside) = range.addresses(pair);
        netlink.raise(INSIDE.index)?;
        netlink.add_address(INSIDE.index, inside, 31)?;
        netlink.add_route(EVERYWHERE, Way::Gateway(gateway))?;
        Ok(lease)
    }

    fn leave(&self) {
        leave_for(&self.host);
    }

    fn has_interfaces(&self) -> bool {
        !connected(&self.prefix).is_empty()
    }
}

impl Hub {
    /// The pairs whose instance is there.
    fn connected(&self, host: &File, prefix: &str) -> Vec<u32> {
        if enter(&self.namespace).is_err() {
            return Vec::new();
        }
        let pairs = connected(prefix);
        leave_for(host);
        pairs
    }
}

/// Returns to the host's namespace. A launcher in a wrong one must not go on.
fn leave_for(host: &File) {
    if enter(host).is_err() {
        sys::exit(1);
    }
}

/// The pairs whose interface is in the current namespace.
fn connected(prefix: &str) -> Vec<u32> {
    let list = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_once(':'));
    names.filter_map(|(name, _)| name.trim().strip_prefix(prefix)?.parse().ok()).collect()
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY))
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn cannot_name_addresses(error: &io::Error) -> String {
    format!(
        "instances leave by `masquerade`, which makes their ends slow while the host tracks many \
         connections: its addresses cannot be watched ({error})"
    )
}

/// Whether it was necessary.
fn enable_forwarding() -> io::Result<bool> {
    let is_off = fs::read_to_string(FORWARDING)?.trim() == "0";
    if is_off {
        fs::write(FORWARDING, "1")?;
    }
    Ok(is_off)
}
