/// An error with its causes, in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        // Some errors tell their cause themselves.
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = error.source();
    }
    text
}

/// A text of at most `most` bytes with a mark that says how many were left out, if there were more.
/// For logs: what a client or a function may choose must not fill them.
pub fn excerpt(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let kept = &text[..text.floor_char_boundary(most)];
    format!("{kept}…(+{} bytes)", text.len() - kept.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not read the catalog")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is full")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("bad query: {0}")]
    struct Telling(#[source] Inner);

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        assert_eq!(describe(&Telling(Inner)), "bad query: the disk is full");
    }

    #[test]
    fn causes_follow_what_they_cause() {
        assert_eq!(describe(&Outer(Inner)), "could not read the catalog: the disk is full");
    }

    #[test]
    fn an_excerpt_says_what_it_leaves_out() {
        for (text, most, expected) in [
            ("", 0, ""),
            ("abc", 3, "abc"),
            ("abcd", 3, "abc…(+1 bytes)"),
            ("aäb", 2, "a…(+3 bytes)"), // between characters
        ] {
            assert_eq!(excerpt(text, most), expected, "{text:?} {most}");
        }
    }
}
