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

/// How many letters must be added, removed or changed (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
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
        ] {
            let near = nearest(name, names.into_iter().map(String::from));
            assert_eq!(near, expected, "{name}");
        }
        assert_eq!(nearest("a", (0..9).map(|n| n.to_string())).len(), MOST);
    }
}
