//! Files of variables: `.env`.
//!
//! A line is `NAME=value`, empty, or a comment that begins with `#`. The word `export` may stand
//! before a name. A value without quotes ends at its line or before ` #`. Within `'` everything is
//! meant as it is written; within `"` the escapes `\n`, `\r`, `\t`, `\"`, `\\` and `\$` mean what they
//! do in a shell. Both may go over several lines. Nothing is replaced in values: `$HOME` is five
//! characters. Of two lines with one name the later one counts.

use std::{fs::File, io::Read, path::Path};

use crate::exit::{Failure, Fatal};

/// A daemon takes no more than this for all settings together.
const MOST: u64 = 256 << 10;

/// Why a file of variables is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Mistake {
    #[error("line {line} is not `NAME=value` and no comment")]
    NoVariable { line: usize },
    #[error("line {line}: {source}")]
    Name { line: usize, source: model::InvalidVariable },
    #[error("the quote that begins in line {line} has no end")]
    Open { line: usize },
    #[error("line {line} goes on after the closing quote; put the whole value into quotes")]
    Rest { line: usize },
    #[error(
        "line {line} has the unknown escape `\\{escape}`; write `\\\\` for a backslash, or use '"
    )]
    Escape { line: usize, escape: char },
    #[error("line {line} has a zero byte, which no variable can have")]
    Zero { line: usize },
}

/// Reads the variables of a file in their order.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let file = path.display();
    let unreadable =
        |error| Fatal::new(Failure::NoInput, format!("could not read {file}: {error}"));
    let mut bytes = Vec::new();
    let opened = File::open(path).map_err(unreadable)?;
    opened.take(MOST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let wrong = |what: &str| Fatal::new(Failure::Usage, format!("{file}: {what}"));
    if bytes.len() as u64 > MOST {
        return Err(wrong("a file of variables has at most 256KiB").into());
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("a file of variables is UTF-8 text"))?;
    Ok(parse(&text).map_err(|mistake| wrong(&mistake.to_string()))?)
}

fn parse(text: &str) -> Result<Vec<(String, String)>, Mistake> {
    let mut variables = Vec::new();
    // Some editors begin a file with a mark of its encoding.
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let (current, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let content = current.trim();
        if content.is_empty() || content.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let (name, value) = current.split_once('=').ok_or(Mistake::NoVariable { line })?;
        let name = name.trim();
        let exported = name.strip_prefix("export").filter(|name| name.starts_with([' ', '\t']));
        let name = exported.map_or(name, str::trim);
        model::check_variable(name).map_err(|source| Mistake::Name { line, source })?;
        let value = value.trim_start_matches([' ', '\t']);
        let (value, next, lines) = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let start = rest.len() - after.len() - usize::from(current.len() < rest.len());
                let start = start - value.len() + 1;
                let (value, used, lines) = quoted(&rest[start..], quote, line)?;
                (value, &rest[start + used..], lines)
            }
            _ => (plain(value).to_owned(), after, 1),
        };
        if value.contains('\0') {
            return Err(Mistake::Zero { line });
        }
        variables.push((name.to_owned(), value));
        (rest, line) = (next, line + lines);
    }
    Ok(variables)
}

/// A value without quotes: a comment behind it is no part of it.
fn plain(value: &str) -> &str {
    if value.starts_with('#') {
        return "";
    }
    let end = [" #", "\t#"].iter().filter_map(|comment| value.find(comment)).min();
    value[..end.unwrap_or(value.len())].trim()
}

/// A value up to its closing quote, how much text was used up to the end of the line, and how many
/// lines that are.
fn quoted(text: &str, quote: char, line: usize) -> Result<(String, usize, usize), Mistake> {
    let (mut value, mut lines) = (String::new(), 1);
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            c if c == quote => {
                let rest = &text[at + 1..];
                let (behind, _) = rest.split_once('\n').unwrap_or((rest, ""));
                let is_end = behind.trim().is_empty() || behind.trim_start().starts_with('#');
                if !is_end {
                    return Err(Mistake::Rest { line: line + lines - 1 });
                }
                let used = (at + 1 + behind.len() + 1).min(text.len());
                return Ok((value, used, lines));
            }
            '\\' if quote == '"' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\' | '$'))) => value.push(c),
                Some((_, escape)) => {
                    return Err(Mistake::Escape { line: line + lines - 1, escape });
                }
                None => break,
            },
            c => {
                lines += usize::from(c == '\n');
                value.push(c);
            }
        }
    }
    Err(Mistake::Open { line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_shells_and_dotenv_do() {
        for (text, expected) in [
            ("", &[][..]),
            ("\u{feff}# a comment\r\n\r\nA=1\r\n", &[("A", "1")]),
            ("export A = b c  # why\n", &[("A", "b c")]),
            ("A=a#b", &[("A", "a#b")]),
            ("A=\nB=#\nC='' # x", &[("A", ""), ("B", ""), ("C", "")]),
            ("A='a\\n$B # \"'", &[("A", "a\\n$B # \"")]),
            (r#"A="a\n\t\"\\\$B" # x"#, &[("A", "a\n\t\"\\$B")]),
            ("A=\"one\ntwo\"\nB=2", &[("A", "one\ntwo"), ("B", "2")]),
            ("A=$HOME/${X}", &[("A", "$HOME/${X}")]),
            ("A=1\nA=2", &[("A", "1"), ("A", "2")]),
            ("export=1", &[("export", "1")]),
            ("A=it's", &[("A", "it's")]),
        ] {
            let variables = parse(text).expect(text);
            let variables: Vec<_> =
                variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(variables, expected, "{text:?}");
        }
    }

    #[test]
    fn mistakes_have_their_line() {
        for (text, expected) in [
            ("A=1\nB", "line 2 is not"),
            ("\n\n9=1", "line 3: "),
            ("HEARTH_X=1", "line 1: "),
            ("A='x\ny", "begins in line 1"),
            ("A=\"x\ny\" z", "line 2 goes on"),
            ("A='1'\nB=\"\\q\"", "line 2 has the unknown escape `\\q`"),
            ("A=\"\nx\"\nB", "line 3 is not"),
            ("A=\0", "zero byte"),
            ("A=\"\\", "has no end"),
        ] {
            let mistake = parse(text).expect_err(text).to_string();
            assert!(mistake.contains(expected), "{text:?}: {mistake}");
        }
    }
}
