//! Hearth's own range of user ids on the host, and whose user namespaces belong to.
//!
//! ```text
//! 0x7000_0000 + owner * 65536 + slot    the user of an instance, and the owner of its namespace
//! 0x7010_0000                           the owner of artifacts on disk
//! ```
//!
//! The range begins far above what distributions give to users, to containers (`/etc/subuid`) and
//! to systemd's dynamic services, so that none of these ids is ever a person or another program.
//!
//! The kernel counts inotify watches, queued signals and the like against the owner of the user
//! namespace in which they are made. Were that the host's root, one instance could take what all
//! other instances and the host's own services need; so each namespace belongs to the user that the
//! instance is on the host. One id is enough for both: to own a namespace gives rights only to
//! processes outside of it, and no process outside ever has the id, except for the launcher's
//! thread while it makes the namespace.

use std::io;

use rustix::{
    process::Uid,
    thread::{
        CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits,
        set_thread_res_uid,
    },
};

use crate::{owner, sys::Child};

/// The first id of the range.
const FIRST: u32 = 0x7000_0000;

/// How many ids each owner number has: the most instances that one launcher can have at a time.
pub(crate) const USERS_OF_AN_OWNER: u32 = 1 << 16;

/// Who owns unpacked artifacts on the host: nobody that could ever log in or run a program. An
/// instance sees them as its own, through a mount that maps this id to the instance's.
pub const ARTIFACT_OWNER: u32 = FIRST + owner::MOST * USERS_OF_AN_OWNER;

/// The first of the ids that the instances of an owner number are.
pub(crate) fn first_user(owner: u32) -> u32 {
    FIRST + owner * USERS_OF_AN_OWNER
}

/// Keeps the launcher's capabilities while its effective user is another one.
pub(crate) fn keep_capabilities() -> io::Result<()> {
    let bits = capabilities_secure_bits()? | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    Ok(set_capabilities_secure_bits(bits)?)
}

/// Runs a fork while this user is the effective one, to whom a new user namespace then belongs.
///
/// Only root may do this, after [`keep_capabilities`]. Real and saved user stay root: nobody but
/// root may send the launcher a signal meanwhile.
pub(crate) fn owned_by(
    user: Option<u32>,
    fork: impl FnOnce() -> io::Result<Option<Child>>,
) -> io::Result<Option<Child>> {
    let Some(user) = user else { return fork() };
    become_for_now(Uid::from_raw(user))?;
    let forked = fork();
    // The child is in another namespace by now, where root's id means nobody.
    if !matches!(forked, Ok(None)) {
        become_for_now(Uid::ROOT).expect("its saved user is root");
    }
    forked
}

fn become_for_now(user: Uid) -> io::Result<()> {
    Ok(set_thread_res_uid(Uid::ROOT, user, Uid::ROOT)?)
}
