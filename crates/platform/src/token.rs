use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use subtle::ConstantTimeEq;

/// The most bytes of a token's file.
const LONGEST: u64 = 4096;

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
    /// It is a directory, a pipe, or the like.
    #[error("{} is no ordinary file, so it holds no token; remove it, and the daemon makes one", .0.display())]
    NoFile(PathBuf),
    /// Somebody else could read and change it.
    #[error(
        "the token in {} belongs to the user {owner}, and its directory does not: give both to one user, \
         or remove the file for a new one",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
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
        match Self::text_of(path) {
            Ok(text) => Self::of(text.trim(), path),
            Err(TokenError::File { source: error, .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
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
            Err(error) => Err(error),
        }
    }

    /// What a token's file says. What is no ordinary file of ours, or readable by others, is
    /// refused, and nothing is waited for: the opening of a pipe would wait for its other end.
    pub fn text_of(path: &Path) -> Result<String, TokenError> {
        let failed =
            |step| move |source| TokenError::File { step, path: path.to_path_buf(), source };
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.map_err(failed("read"))?;
        let found = file.metadata().map_err(failed("look at"))?;
        if !found.is_file() {
            return Err(TokenError::NoFile(path.into()));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        let owner = fs::metadata(directory).map_err(failed("look around"))?.uid();
        if found.uid() != owner && found.uid() != 0 {
            return Err(TokenError::Foreign { path: path.into(), owner: found.uid() });
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: path.into(), mode });
        }
        io::read_to_string(file.take(LONGEST)).map_err(failed("read"))
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

    #[test]
    fn what_is_no_file_of_its_directorys_owner_holds_no_token() {
        let place = std::env::temp_dir().join(format!("hearth-token-odd-{}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir(&place).expect("made");
        let path = place.join("token");
        fs::create_dir(&path).expect("made");
        let refused = Token::load_or_create(&path).expect_err("a directory");
        assert!(matches!(refused, TokenError::NoFile(_)), "{refused}");
        fs::remove_dir(&path).expect("removed");
        // Nobody will ever write to it.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("made");
        let refused = Token::load_or_create(&path).expect_err("a pipe");
        assert!(matches!(refused, TokenError::NoFile(_)), "{refused}");
        fs::remove_file(&path).expect("removed");
        if rustix::process::geteuid().is_root() {
            fs::write(&path, "a-token-of-somebody-else").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
            std::os::unix::fs::chown(&path, Some(65534), None).expect("given away");
            let refused = Token::load_or_create(&path).expect_err("somebody else's");
            assert!(matches!(refused, TokenError::Foreign { owner: 65534, .. }), "{refused}");
        } else {
            println!("skipped: a part of token: only root gives files away");
        }
        fs::remove_dir_all(&place).expect("removed");
    }
}
