/// What variables of a function cannot begin with: Hearth tells its workers things by such names.
const RESERVED: &str = "HEARTH_";

/// A name that a function's variable cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVariable {
    /// Shells and languages disagree about such names, or cannot read them at all.
    #[error(
        "the variable {name:?} must have a name of letters, digits, `_`, `.` and `-`, and not \
         begin with a digit"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Hearth's own.
    #[error(
        "the variable `{name}` cannot be set: names that begin with `HEARTH_` are Hearth's own"
    )]
    Reserved {
        /// What was given.
        name: String,
    },
}

/// Whether a function can have a variable of this name.
pub fn check_variable(name: &str) -> Result<(), InvalidVariable> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins_well || !name.chars().all(is_allowed) {
        return Err(InvalidVariable::Name { name: name.into() });
    }
    if name.starts_with(RESERVED) {
        return Err(InvalidVariable::Reserved { name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_every_language_reads() {
        for (name, expected) in [
            ("A", true),
            ("_x9", true),
            ("spring.profiles-active", true),
            ("HEARTH", true),
            ("HEARTH_SOCKET", false),
            ("", false),
            ("A B", false),
            ("9A", false),
            ("A=B", false),
            ("A\0", false),
            ("größe", false),
        ] {
            assert_eq!(check_variable(name).is_ok(), expected, "{name:?}");
        }
    }
}
