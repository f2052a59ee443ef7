/// At most so many names are offered.
const MOST: usize = 3;

/// The names that somebody who wrote `name` may have meant: at most three, nearest first.
pub fn nearest(name: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let most = name.len().div_ceil(3);
    let mut near: Vec<_> = names
        .filter_map(|other| {
            let distance = distance(name.as_bytes(), other.as_bytes());
            let is_part = name.len() > 2 && (other.contains(name) || name.contains(&other));
            (distance <= most || is_part).then_some((distance, other))
        })
        .collect();
    near.sort();
    near.into_iter().map(|(_, name)| name).take(MOST).collect()
}

/// How many letters must be added, removed, changed, or swapped with their neighbour (optimal string
/// alignment).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (row[j] + usize::from(x != y)).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && (x, &a[i - 1]) == (&b[j - 1], y) {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names_come_first() {
        let names = ["hello", "help", "resize", "hello-world", "x"];
        for (name, expected) in [
            ("helo", &["hello", "help"][..]),
            ("resise", &["resize"]),
            ("world", &["hello-world"]),
            ("nothing-like-it", &[]),
            ("ehlp", &["help"]),
        ] {
            let near = nearest(name, names.into_iter().map(String::from));
            assert_eq!(near, expected, "{name}");
        }
        assert_eq!(nearest("a", (0..9).map(|n| n.to_string())).len(), MOST);
    }
}
