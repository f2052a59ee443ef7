//! Whether a host has room for what is to be kept on it.

use std::fmt;

use model::FunctionName;

/// The places of a host, and who keeps some of them although nobody calls.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// All places.
    pub(crate) places: u32,
    /// How many of them can be kept.
    pub(crate) most_kept: u32,
    /// Other functions that keep some, and how many.
    pub(crate) others: Vec<(FunctionName, u32)>,
}

/// Why a deployment cannot have what it asks for on this host. The messages name the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    /// It wants to keep more than there is.
    #[error(
        "`--min {min}` is more than this host has room for: {most_kept} of its {places} places \
         (`--max-instances`) can be kept{}; use {}, or start the daemon with a larger \
         `--max-instances`",
        Kept(others), Least(*most)
    )]
    TooMuch {
        /// What was asked for.
        min: u32,
        /// What could be.
        most: u32,
        /// All that can be kept.
        most_kept: u32,
        /// All places.
        places: u32,
        /// Who keeps the rest.
        others: Vec<(FunctionName, u32)>,
    },
    /// Others keep every place.
    #[error(
        "no place is left for it: all {places} places of this host (`--max-instances`) are kept{}; \
         deploy one of these with a smaller `--min`, or start the daemon with a larger \
         `--max-instances`",
        Kept(others)
    )]
    AllKept {
        /// All places.
        places: u32,
        /// Who keeps them.
        others: Vec<(FunctionName, u32)>,
    },
}

impl Room {
    /// Whether nothing is left for a deployment of a function that keeps `min` itself.
    pub(crate) fn is_all_kept_with(&self, min: u32) -> bool {
        self.kept() + u64::from(min) >= u64::from(self.places)
    }

    /// What the others keep.
    fn kept(&self) -> u64 {
        self.others.iter().map(|(_, min)| u64::from(*min)).sum()
    }

    /// Whether a function can be deployed that keeps `min` instances.
    pub(crate) fn check(mut self, min: u32) -> Result<(), NoRoom> {
        let Self { places, most_kept, .. } = self;
        let kept = self.kept();
        // Who keeps most comes first.
        self.others.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let others = self.others;
        if kept >= u64::from(places) {
            return Err(NoRoom::AllKept { places, others });
        }
        let most = u32::try_from(u64::from(most_kept).saturating_sub(kept)).unwrap_or(u32::MAX);
        if min > most {
            return Err(NoRoom::TooMuch { min, most, most_kept, places, others });
        }
        Ok(())
    }
}

/// `, and others keep 5 (a: 3, b: 2)`
struct Kept<'a>(&'a [(FunctionName, u32)]);

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let Self(others) = self;
        if others.is_empty() {
            return Ok(());
        }
        let kept: u64 = others.iter().map(|(_, min)| u64::from(*min)).sum();
        write!(f, ", of which other functions keep {kept} with their `--min` (")?;
        for (position, (name, min)) in others.iter().take(SHOWN).enumerate() {
            write!(f, "{}{name}: {min}", if position == 0 { "" } else { ", " })?;
        }
        f.write_str(if others.len() > SHOWN { ", …)" } else { ")" })
    }
}

struct Least(u32);

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("`--min 0`, lower theirs"),
            most => write!(f, "at most `--min {most}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(others: &[(&str, u32)]) -> Room {
        let others = others.iter().map(|(name, min)| (name.parse().expect("a name"), *min));
        Room { places: 16, most_kept: 14, others: others.collect() }
    }

    #[test]
    fn what_is_kept_leaves_a_place_for_a_deployment() {
        for (others, min, expected) in [
            (&[][..], 0, None),
            (&[], 14, None),
            (&[], 15, Some("14 of its 16 places")),
            (&[("a", 10)], 4, None),
            (&[("a", 10)], 5, Some("at most `--min 4`")),
            (&[("b", 3), ("a", 9)], 5, Some("functions keep 12 with their `--min` (a: 9, b: 3)")),
            (&[("a", 14)], 0, None),
            (&[("a", 14)], 1, Some("use `--min 0`, lower theirs")),
            // The daemon was started with fewer places than before.
            (&[("a", 15)], 0, None),
            (&[("a", 9), ("b", 7)], 0, Some("all 16 places of this host (`--max-instances`)")),
            (&[("a", u32::MAX), ("b", 9)], u32::MAX, Some("a: 4294967295, b: 9")),
        ] {
            let said = room(others).check(min).err().map(|error| error.to_string());
            let is_right = match (&said, expected) {
                (None, None) => true,
                (Some(said), Some(expected)) => said.contains(expected),
                _ => false,
            };
            assert!(is_right, "{others:?} {min}: {said:?}");
        }
        for (own, expected) in [(0, false), (5, false), (6, true), (u32::MAX, true)] {
            assert_eq!(room(&[("a", 10)]).is_all_kept_with(own), expected, "{own}");
        }
    }
}
