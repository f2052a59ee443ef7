use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use subtle::ConstantTimeEq;

/// What whoever administers must know. It is not printed.
#[derive(Clone)]
pub struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its file.
    #[error("could not {step} the token in {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others can read it, or could.
    #[error(
        "others can read the token in {} (mode {mode:04o}): `chmod 600 {}` keeps it; if somebody \
         may have read it, remove the file, and the daemon makes a new one when it starts",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It would be easy to guess.
    #[error("the token in {} is shorter than 16 characters; remove the file for a new one", .0.display())]
    Weak(PathBuf),
}

impl Token {
    /// Reads the token in a file, which is made with a new one if it is missing, for its owner's
    /// eyes only. One that others can read is refused.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        let failed =
            |step| move |source| TokenError::File { step, path: path.to_path_buf(), source };
        match fs::read_to_string(path) {
            Ok(text) => {
                let found = fs::metadata(path).map_err(failed("look at"))?;
                let mode = found.mode() & 0o7777;
                if mode & 0o077 != 0 {
                    return Err(TokenError::Exposed { path: path.into(), mode });
                }
                Self::of(text.trim(), path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let token = Self::random().map_err(failed("make"))?;
                let mut options = fs::OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                file.and_then(|mut file| {
                    file.write_all(format!("{}\n", token.0).as_bytes())?;
                    file.sync_all()
                })
                .map_err(failed("write"))?;
                Ok(token)
            }
            Err(error) => Err(failed("read")(error)),
        }
    }

    fn of(text: &str, path: &Path) -> Result<Self, TokenError> {
        if text.len() < 16 { Err(TokenError::Weak(path.into())) } else { Ok(Self(text.into())) }
    }

    fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; 24];
        let read = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        if read != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            write!(text, "{byte:02x}").expect("a string takes all");
        }
        Ok(Self(text))
    }

    /// Whether text is the token. Takes the same time wherever texts differ.
    pub fn admits(&self, given: &str) -> bool {
        bool::from(self.0.as_bytes().ct_eq(given.as_bytes()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_for_its_owner_and_never_printed() {
        let path = std::env::temp_dir().join(format!("hearth-token-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let token = Token::load_or_create(&path).expect("made");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(&path).expect("readable");
        assert!(token.admits(text.trim()) && !token.admits("") && !token.admits("change-me"));
        let again = Token::load_or_create(&path).expect("read");
        assert!(again.admits(text.trim()));
        assert_eq!(format!("{token:?}"), "Token(…)");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let error = Token::load_or_create(&path).expect_err("exposed");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&path, "short").expect("written");
        assert!(matches!(Token::load_or_create(&path), Err(TokenError::Weak(_))));
        fs::remove_file(&path).expect("removed");
    }
}
