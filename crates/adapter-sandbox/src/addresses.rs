//! The addresses of one owner's instances, and when one may be given to the next instance.
//!
//! ```text
//! clean ──► used ──► its interface is gone ──► its flows are forgotten ──► clean
//! ```
//!
//! Looking through the kernel's flows takes long if there are many, so it is done for many
//! addresses together, and in small steps while nobody waits for a launch.

use std::{collections::VecDeque, io, net::Ipv4Addr};

use crate::{
    flows::{Forgetting, Forgotten},
    network::HUB,
    owner,
    reach::Subnet,
};

/// Where interface numbers of ours begin: far above what the kernel gives out by itself.
const FIRST_INDEX: u32 = 0x2000_0000;

/// What all our interface numbers have in common: there are at most 2²⁴ of them.
pub(crate) const HIGH_BYTE_OF_INDEX: u8 = FIRST_INDEX.to_be_bytes()[0];

/// Whether an interface connects an instance, of whatever owner.
pub(crate) fn is_of_instances(index: u32) -> bool {
    index >> 24 == u32::from(HIGH_BYTE_OF_INDEX)
}

/// The addresses of one owner: a sixteenth of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    first: u32,
    /// How many pairs of addresses there are.
    pub(crate) pairs: u32,
    first_index: u32,
}

impl Range {
    pub(crate) fn new(address: Ipv4Addr, prefix: u8, owner: u32) -> Self {
        let whole = 1u32 << (32 - u32::from(prefix.clamp(8, 24)));
        let size = whole / owner::MOST;
        let first = (address.to_bits() & !(whole - 1)) + owner * size;
        Self { first, pairs: size / 2, first_index: FIRST_INDEX + owner * size }
    }

    pub(crate) fn index(self, pair: u32) -> u32 {
        self.first_index + pair
    }

    /// The host's address and the instance's: a network of exactly two.
    pub(crate) fn addresses(self, pair: u32) -> (Ipv4Addr, Ipv4Addr) {
        let first = self.first + 2 * pair;
        (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first + 1))
    }

    /// All of them.
    pub(crate) fn whole(self) -> Subnet {
        let bits = (2 * self.pairs).leading_zeros() + 1;
        Subnet::around(Ipv4Addr::from_bits(self.first), u8::try_from(bits).unwrap_or(32))
    }

    fn all(self) -> (Ipv4Addr, Ipv4Addr) {
        (self.addresses(0).0, self.addresses(self.pairs - 1).1)
    }
}

/// Pairs of addresses, by their numbers.
pub(crate) struct Addresses {
    pub(crate) range: Range,
    /// Nothing is remembered of whoever had them. The longest unused first.
    clean: VecDeque<u32>,
    used: Vec<u32>,
    /// How many are given out before it is looked which ones are free again.
    patience: u32,
    forgetting: Option<(Forgetting, Vec<u32>)>,
    /// Addresses of the host that flows are not to leave from any more.
    given_up: Vec<Ipv4Addr>,
    /// Why flows cannot be forgotten here, if they cannot, and whether that has been said.
    cannot_forget: Option<String>,
    has_complained: bool,
}

impl Addresses {
    /// A former owner may have had all of them, so none is clean.
    pub(crate) fn new(range: Range) -> Self {
        Self {
            range,
            clean: VecDeque::new(),
            used: (0..range.pairs).filter(|pair| *pair != HUB).collect(),
            patience: 0,
            forgetting: None,
            given_up: Vec::new(),
            cannot_forget: None,
            has_complained: false,
        }
    }

    /// A pair that no flow knows. `there` says of which pairs the interface still exists.
    pub(crate) fn take(&mut self, there: impl Fn() -> Vec<u32>) -> io::Result<u32> {
        self.patience = self.patience.saturating_sub(1);
        let is_low = self.clean.len() <= self.used.len() / 2;
        if self.clean.is_empty() || (is_low && self.patience == 0) {
            self.begin(&there());
        }
        while self.clean.is_empty() && self.is_forgetting() {
            self.go_on();
        }
        let pair = self.clean.pop_front().ok_or(io::ErrorKind::AddrNotAvailable)?;
        self.used.push(pair);
        Ok(pair)
    }

    /// Has flows forgotten that leave from addresses which the host has no more.
    pub(crate) fn give_up(&mut self, sources: Vec<Ipv4Addr>) {
        self.given_up.extend(sources);
    }

    /// Whether [`Self::go_on`] has something to do.
    pub(crate) fn is_forgetting(&self) -> bool {
        self.forgetting.is_some() || !self.given_up.is_empty()
    }

    /// Looks which used pairs are free again, and begins to forget their flows.
    pub(crate) fn begin(&mut self, there: &[u32]) {
        if self.forgetting.is_some() {
            return;
        }
        self.patience = self.range.pairs / 8;
        let (kept, free) = self.used.drain(..).partition(|pair| there.contains(pair));
        self.used = kept;
        self.forget(free);
    }

    fn forget(&mut self, free: Vec<u32>) {
        let what = Forgotten {
            instances: free.iter().map(|pair| self.range.addresses(*pair).1).collect(),
            sources: std::mem::take(&mut self.given_up),
            all: self.range.all(),
        };
        match Forgetting::start(what) {
            Ok(forgetting) => self.forgetting = Some((forgetting, free)),
            Err(error) => self.fail(&error, free),
        }
    }

    /// A step towards clean pairs.
    pub(crate) fn go_on(&mut self) {
        let Some((forgetting, free)) = self.forgetting.take() else {
            if !self.given_up.is_empty() {
                self.forget(Vec::new());
            }
            return;
        };
        match forgetting.step() {
            Ok(true) => self.clean.extend(free),
            Ok(false) => self.forgetting = Some((forgetting, free)),
            Err(error) => self.fail(&error, free),
        }
    }

    /// What the operator should know, once.
    pub(crate) fn take_complaint(&mut self) -> Option<String> {
        let why = self.cannot_forget.as_ref().filter(|_| !self.has_complained)?;
        self.has_complained = true;
        Some(format!(
            "connections of instances that are gone cannot be forgotten ({why}): late packets for \
             one may reach the instance that has its address next"
        ))
    }

    /// What cannot be forgotten must do: it ends by itself, and the longest unused come first.
    fn fail(&mut self, error: &io::Error, free: Vec<u32>) {
        self.cannot_forget.get_or_insert_with(|| error.to_string());
        self.clean.extend(free);
    }
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
        assert_eq!(range(1).whole().to_string(), "10.199.16.0/20");
        assert!(range(0).index(last) < range(1).index(0));
    }

    #[test]
    fn all_interfaces_are_known_by_their_numbers() {
        let largest = Range::new(Ipv4Addr::new(10, 0, 0, 0), 8, owner::MOST - 1);
        assert!(is_of_instances(largest.index(0)));
        assert!(is_of_instances(largest.index(largest.pairs - 1)));
        assert!(!is_of_instances(FIRST_INDEX - 1));
    }
}
