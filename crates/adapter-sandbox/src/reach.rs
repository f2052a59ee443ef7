//! Which addresses instances with an egress network may reach.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// All addresses.
pub(crate) const EVERYWHERE: Subnet = Subnet::new(0, 0, 0, 0, 0);

/// Ranges that are never opened: this host, its loopback, the metadata services of clouds, and
/// what is no address of a single machine.
pub(crate) const NEVER: [Subnet; 5] = [
    Subnet::new(0, 0, 0, 0, 8),
    Subnet::new(127, 0, 0, 0, 8),
    Subnet::new(169, 254, 0, 0, 16),
    Subnet::new(224, 0, 0, 0, 4),
    Subnet::new(240, 0, 0, 0, 4),
];

/// What is not the public Internet, beside [`NEVER`]: the entries of IANA's "IPv4 Special-Purpose
/// Address Registry" (RFC 6890, RFC 8190) that are not globally reachable, as of 2024.
///
/// Two differ from it. 192.0.0.0/24 is closed as a whole, although 192.0.0.9 and 192.0.0.10 are
/// called reachable: they are whatever device of the local network answers there (RFC 7723, RFC
/// 8155). 192.88.99.0/24 led to relays that no longer exist (RFC 7526). AS112's servers
/// (192.31.196.0/24, 192.175.48.0/24) and relays for multicast (192.52.193.0/24) are globally
/// reachable, and stay open.
pub(crate) const NOT_PUBLIC: [Subnet; 10] = [
    Subnet::new(10, 0, 0, 0, 8),
    Subnet::new(100, 64, 0, 0, 10),
    Subnet::new(172, 16, 0, 0, 12),
    Subnet::new(192, 0, 0, 0, 24),
    Subnet::new(192, 0, 2, 0, 24),
    Subnet::new(192, 88, 99, 0, 24),
    Subnet::new(192, 168, 0, 0, 16),
    Subnet::new(198, 18, 0, 0, 15),
    Subnet::new(198, 51, 100, 0, 24),
    Subnet::new(203, 0, 113, 0, 24),
];

/// A range of IPv4 addresses, such as `10.1.0.0/16`.
///
/// Parsing one checks that it may be opened to instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subnet {
    first: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no range that may be opened to instances.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Only the address is there.
    #[error("`{0}` has no length: write `{0}/32` for this address alone")]
    NoPrefix(Ipv4Addr),
    /// Instances have no IPv6 network.
    #[error("`{0}` is IPv6, and instances have IPv4 networks only")]
    Ipv6(String),
    /// Not of the usual form.
    #[error("`{0}` is no range of addresses: write it like `10.1.0.0/16`")]
    Malformed(String),
    /// The first address of the range is another one.
    #[error("`{given}` is an address inside a range: write `{meant}` for the whole range")]
    HostBits {
        /// What was written.
        given: String,
        /// The range that holds the address.
        meant: Subnet,
    },
    /// Some of it is never opened.
    #[error("`{given}` holds addresses of `{never}`, which are never opened to instances")]
    Never {
        /// What was written.
        given: Subnet,
        /// The range it overlaps.
        never: Subnet,
    },
}

impl Subnet {
    const fn new(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self { first: Ipv4Addr::new(a, b, c, d), prefix }
    }

    /// The range of this size that holds an address. A prefix above 32 counts as 32.
    pub(crate) fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { first: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    pub(crate) fn first(self) -> Ipv4Addr {
        self.first
    }

    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.first.to_bits()
    }

    fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let malformed = || SubnetError::Malformed(text.into());
        if text.contains(':') {
            return Err(SubnetError::Ipv6(text.into()));
        }
        let Some((address, prefix)) = text.split_once('/') else {
            let address = text.parse().map_err(|_| malformed())?;
            return Err(SubnetError::NoPrefix(address));
        };
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| malformed())?;
        if !is_number || prefix > 32 {
            return Err(malformed());
        }
        let subnet = Self::around(address, prefix);
        if subnet.first != address {
            return Err(SubnetError::HostBits { given: text.into(), meant: subnet });
        }
        match NEVER.into_iter().find(|never| never.overlaps(subnet)) {
            Some(never) => Err(SubnetError::Never { given: subnet, never }),
            None => Ok(subnet),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written_alike() {
        for text in ["10.0.0.0/8", "10.0.0.5/32", "192.168.4.0/22", "8.8.8.0/24"] {
            assert_eq!(text.parse::<Subnet>().map(|subnet| subnet.to_string()), Ok(text.into()));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("10.0.0.5", "`10.0.0.5/32`"),
            ("fd00::/8", "IPv4 networks only"),
            ("10.1.2.3/16", "write `10.1.0.0/16`"),
            ("10.0.0.0/33", "like `10.1.0.0/16`"),
            ("10.0.0.0/+8", "like `10.1.0.0/16`"),
            ("10.0.0.0/", "like `10.1.0.0/16`"),
            ("10.0/8", "like `10.1.0.0/16`"),
            ("", "like `10.1.0.0/16`"),
            ("0.0.0.0/0", "`0.0.0.0/8`, which are never opened"),
            ("127.0.0.1/32", "`127.0.0.0/8`"),
            ("169.254.169.254/32", "`169.254.0.0/16`"),
            ("128.0.0.0/1", "`169.254.0.0/16`"),
            ("255.255.255.255/32", "`240.0.0.0/4`"),
        ] {
            let error = text.parse::<Subnet>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn every_special_range_is_closed() {
        let is_closed = |address: &str| {
            let address = address.parse().expect("an address");
            NEVER.iter().chain(&NOT_PUBLIC).any(|subnet| subnet.contains(address))
        };
        for address in [
            "0.0.0.0",
            "10.255.255.255",
            "100.64.0.1",
            "127.0.0.53",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_closed(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.175.48.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
        ] {
            assert!(!is_closed(address), "{address}");
        }
    }
}
