//! A clock that a test sets, for a daemon of its own.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
};

use crate::{folder, server::Scratch};

/// The wall clock of whoever has its [`Clock::variables`].
#[derive(Debug)]
pub struct Clock {
    scratch: Scratch,
    step: File,
}

impl Clock {
    /// A clock that is right. Without a C compiler there is none, but a reason.
    ///
    /// # Panics
    ///
    /// If its files cannot be written.
    pub fn new() -> Result<Self, String> {
        let scratch = Scratch::new();
        let library = scratch.path().join("clock.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
        let output = compiler.arg(folder().join("src/clock.c")).output();
        let output = output.map_err(|error| format!("no C compiler: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let path = scratch.path().join("step");
        fs::write(&path, 0_i64.to_ne_bytes()).expect("a file");
        let step = File::options().write(true).open(path).expect("it was just written");
        Ok(Self { scratch, step })
    }

    /// What a program needs to go by this clock. Only programs that are linked dynamically do.
    pub fn variables(&self) -> [(&'static str, PathBuf); 2] {
        let of = |name| self.scratch.path().join(name);
        [("LD_PRELOAD", of("clock.so")), ("CLOCK_STEP", of("step"))]
    }

    /// Sets it to so many seconds after the right time.
    ///
    /// # Panics
    ///
    /// If its file cannot be written.
    pub fn set(&self, seconds: i64) {
        self.step.write_all_at(&seconds.to_ne_bytes(), 0).expect("written");
    }
}
