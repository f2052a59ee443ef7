//! `eprintln!` and `eprint!` as the whole program uses them. Those of the standard library panic
//! when standard error is a closed pipe or a full disk, and wait when nobody reads it; what we have
//! to say is no reason for either.

macro_rules! eprintln {
    ($($text:tt)*) => { ::telemetry::say(format!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprint {
    ($($text:tt)*) => { ::telemetry::say(format!($($text)*)) };
}
