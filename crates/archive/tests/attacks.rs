//! What a stranger may send: each archive here once got something out of a tar reader.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use archive::{UnpackError, UnpackLimits, unpack};
use tar::{Builder, EntryType, Header};

/// A directory with a directory in it, so that it shows what was written beside.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let root =
            std::env::temp_dir().join(format!("hearth-unpack-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("inner")).expect("create");
        Self(root)
    }

    fn inner(&self) -> PathBuf {
        self.0.join("inner")
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(&self.0).expect("read").flatten().collect();
        assert_eq!(names.len(), 1, "something was written outside: {names:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes names as they are, also those that no decent tar has.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: EntryType, name: &str, target: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4644);
        header.set_size(content.len() as u64);
        if kind == EntryType::GNUSparse {
            header.as_gnu_mut().expect("made as such").set_real_size(0);
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str) -> Self {
        self.entry(EntryType::Regular, name, "", b"content")
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// Unpacks it with small limits; nothing may be written outside.
    fn unpack(self, test: &str) -> Result<archive::Summary, UnpackError> {
        let place = Place::new(test);
        let outcome = unpack(self.end().as_slice(), &place.inner(), &LIMITS);
        place.assert_untouched();
        outcome
    }
}

const LIMITS: UnpackLimits = UnpackLimits { bytes: 10_000, entries: 20, path_length: 300 };

/// Asserts that an archive is refused for a reason.
macro_rules! assert_refused {
    ($outcome:expr, $reason:pat) => {
        match $outcome {
            Err($reason) => {}
            other => panic!("expected {}, got {other:?}", stringify!($reason)),
        }
    };
}

#[test]
fn paths_that_lead_outside_are_refused() {
    for name in ["/tmp/x", "../x", "a/../../x", "a/..", "", "./", "..", "/"] {
        let outcome = Tar::default().file(name).unpack("paths");
        assert_refused!(outcome, UnpackError::Path { .. });
    }
    assert_refused!(Tar::default().directory("../x").unpack("paths"), UnpackError::Path { .. });
}

#[test]
fn links_that_lead_outside_are_refused() {
    for (name, target) in [
        ("link", "/etc/passwd"),
        ("link", ".."),
        ("a/link", "../../x"),
        ("link", "a/.."),
        ("link", ""),
    ] {
        let outcome = Tar::default().symlink(name, target).unpack("links");
        assert_refused!(outcome, UnpackError::Link { .. });
    }
}

/// `a/b` is the tree's root, so `a/b/..` would be above it, though it looks like `a`.
#[test]
fn two_links_that_lead_outside_together_are_refused() {
    let tar = Tar::default().directory("a").symlink("a/b", "..").symlink("c", "a/b/..");
    assert_refused!(tar.unpack("pair"), UnpackError::Link { .. });
}

#[test]
fn nothing_goes_through_a_link() {
    let through = Tar::default().directory("d").symlink("a", "d").file("a/x");
    assert_refused!(through.unpack("through"), UnpackError::NotInDirectory { .. });
    let before = Tar::default().file("a/x").symlink("a", "d");
    assert_refused!(before.unpack("through"), UnpackError::Twice { .. });
    let link_in_link = Tar::default().directory("d").symlink("a/l", "x").symlink("a", "d");
    assert_refused!(link_in_link.unpack("through"), UnpackError::NotInDirectory { .. });
    let other_order = Tar::default().directory("d").symlink("a", "d").symlink("a/l", "x");
    assert_refused!(other_order.unpack("through"), UnpackError::NotInDirectory { .. });
    let directory = Tar::default().symlink("a", "d").directory("a");
    assert_refused!(directory.unpack("through"), UnpackError::NotInDirectory { .. });
    let file = Tar::default().file("a").file("a/x");
    assert_refused!(file.unpack("through"), UnpackError::NotInDirectory { .. });
}

#[test]
fn what_occurs_twice_is_refused() {
    let twice = |second: fn(Tar) -> Tar| second(Tar::default().file("a")).unpack("twice");
    assert_refused!(twice(|tar| tar.file("a")), UnpackError::Twice { .. });
    assert_refused!(twice(|tar| tar.file("./a")), UnpackError::Twice { .. });
    assert_refused!(twice(|tar| tar.symlink("a", "b")), UnpackError::Twice { .. });
    assert_refused!(twice(|tar| tar.hard_link("a", "a")), UnpackError::Twice { .. });
    let links = Tar::default().symlink("a", "b").symlink("a", "c");
    assert_refused!(links.unpack("twice"), UnpackError::Twice { .. });
    let directories = Tar::default().directory("a").file("a/x").directory("a/");
    directories.unpack("twice").expect("directories may occur twice");
}

#[test]
fn hard_links_name_earlier_files_only() {
    for target in ["/etc/passwd", "../x", "missing", "directory", "link", "link/x", ""] {
        let tar = Tar::default().directory("directory").symlink("link", "directory");
        let outcome = tar.hard_link("a", target).unpack("hard");
        assert_refused!(outcome, UnpackError::HardLink { .. });
    }
    let place = Place::new("hard-good");
    let tar = Tar::default().file("d/a").hard_link("b", "d/a").end();
    let summary = unpack(tar.as_slice(), &place.inner(), &LIMITS).expect("unpack");
    assert_eq!(summary.files, 2);
    assert_eq!(fs::metadata(place.inner().join("b")).expect("linked").nlink(), 2);
}

#[test]
fn devices_pipes_and_sparse_files_are_refused() {
    let kinds = [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse];
    for kind in kinds.into_iter().chain([EntryType::new(b'?')]) {
        let outcome = Tar::default().entry(kind, "a", "", b"").unpack("kinds");
        assert_refused!(outcome, UnpackError::Kind { .. });
    }
}

#[test]
fn no_special_bits_survive() {
    let place = Place::new("modes");
    unpack(Tar::default().file("a").end().as_slice(), &place.inner(), &LIMITS).expect("unpack");
    let mode = fs::metadata(place.inner().join("a")).expect("unpacked").permissions().mode();
    assert_eq!(mode & 0o7777, 0o644, "was 4644");
}

#[test]
fn limits_hold_to_the_byte_and_the_entry() {
    let of_size = |size| Tar::default().entry(EntryType::Regular, "a", "", &vec![1; size]);
    of_size(10_000).unpack("bytes").expect("as much as is allowed");
    assert_refused!(of_size(10_001).unpack("bytes"), UnpackError::TooLarge { limit: 10_000 });
    let in_parts = of_size(9_000).entry(EntryType::Regular, "b", "", &[1; 1_001]);
    assert_refused!(in_parts.unpack("bytes"), UnpackError::TooLarge { .. });
    let hidden = Tar::default().entry(EntryType::Directory, "a", "", &[1; 10_001]);
    assert_refused!(hidden.unpack("bytes"), UnpackError::TooLarge { .. });

    let files = |count| (0..count).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}")));
    files(20).unpack("entries").expect("as many as are allowed");
    assert_refused!(files(21).unpack("entries"), UnpackError::TooMany { limit: 20 });
    let links =
        |count| (0..count).fold(Tar::default(), |tar, n| tar.symlink(&format!("l{n}"), "x"));
    assert_refused!(links(21).unpack("entries"), UnpackError::TooMany { .. });
    let nested = Tar::default().file(&format!("{}f", "d/".repeat(20)));
    assert_refused!(nested.unpack("entries"), UnpackError::TooMany { .. });
}

/// A long name comes as an entry of its own, before the one that it names.
fn long_name(kind: EntryType, name: &[u8]) -> Tar {
    Tar::default().entry(kind, "././@LongLink", "", name)
}

#[test]
fn long_names_have_limits() {
    let name = format!("{0}/{0}", "a".repeat(149));
    let most = long_name(EntryType::GNULongName, name.as_bytes()).file("x").unpack("names");
    assert_eq!(most.expect("299 bytes").files, 1);
    let more = format!("{0}/{0}", "a".repeat(150));
    let more = long_name(EntryType::GNULongName, more.as_bytes()).file("x").unpack("names");
    assert_refused!(more, UnpackError::TooLong { limit: 300, .. });
    let one = long_name(EntryType::GNULongName, &[b'a'; 256]).file("x").unpack("names");
    assert_refused!(one, UnpackError::TooLong { limit: 255, .. });
    let target = long_name(EntryType::GNULongLink, &[b'a'; 301]).symlink("x", "").unpack("names");
    assert_refused!(target, UnpackError::TooLong { limit: 300, .. });
}

/// Names are held in memory, so their own size is no measure of what may be read.
#[test]
fn a_name_of_gigabytes_is_not_read() {
    let header = Tar::default().entry(EntryType::GNULongName, "././@LongLink", "", b"");
    let mut header = Header::from_byte_slice(&header.0[..512]).clone();
    header.set_size(8 << 30);
    header.set_cksum();
    let bomb = io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(b'a'));
    let place = Place::new("long-name");
    assert_refused!(unpack(bomb, &place.inner(), &LIMITS), UnpackError::Malformed(_));
}

#[test]
fn compressed_bombs_end_at_the_limit() {
    let mut header = Header::new_gnu();
    header.set_path("zeros").expect("a path");
    header.set_size(8 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zstd.write_all(header.as_bytes()).expect("in memory");
    gzip.write_all(header.as_bytes()).expect("in memory");
    io::copy(&mut io::repeat(0).take(50 << 20), &mut zstd).expect("in memory");
    io::copy(&mut io::repeat(0).take(1 << 20), &mut gzip).expect("in memory");
    for bomb in [zstd.finish().expect("in memory"), gzip.finish().expect("in memory")] {
        let place = Place::new("bomb");
        let outcome = unpack(bomb.as_slice(), &place.inner(), &LIMITS);
        assert_refused!(outcome, UnpackError::TooLarge { limit: 10_000 });
    }
}

#[test]
fn what_is_no_archive_says_so() {
    let unpack = |bytes: &[u8]| {
        let place = Place::new("nonsense");
        unpack(bytes, &place.inner(), &LIMITS)
    };
    assert_refused!(unpack(b""), UnpackError::Empty);
    assert_refused!(unpack(&[0; 1024]), UnpackError::Empty);
    assert_refused!(unpack(&[b'x'; 2000]), UnpackError::Malformed(_));
    assert_refused!(unpack(b"PK\x03\x04 a zip"), UnpackError::Malformed(_));
    let whole = Tar::default().file("a").end();
    assert_refused!(unpack(&whole[..515]), UnpackError::Malformed(_));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).expect("in memory");
    let mut gzip = gzip.finish().expect("in memory");
    let checksum = gzip.len() - 6;
    gzip[checksum] ^= 1;
    assert_refused!(unpack(&gzip), UnpackError::Malformed(_));
}

#[test]
fn a_directory_that_holds_something_is_left_alone() {
    let place = Place::new("full");
    std::os::unix::fs::symlink("..", place.inner().join("a")).expect("link");
    let outcome = unpack(Tar::default().file("a/x").end().as_slice(), &place.inner(), &LIMITS);
    assert_refused!(outcome, UnpackError::NotEmpty);
    place.assert_untouched();
}

/// What `git archive` and other tools write.
#[test]
fn ordinary_archives_unpack() {
    let mut builder = Builder::new(Vec::new());
    let mut comment = Header::new_ustar();
    comment.set_entry_type(EntryType::XGlobalHeader);
    comment.set_size(7);
    comment.set_cksum();
    builder.append_data(&mut comment, "pax_global_header", &b"comment"[..]).expect("in memory");
    let long = format!("top/{}", "long/".repeat(30));
    let mut header = Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(2);
    builder.append_data(&mut header, Path::new(&long).join("run"), &b"hi"[..]).expect("in memory");
    let place = Place::new("ordinary");
    let limits = UnpackLimits { entries: 100, ..LIMITS };
    unpack(builder.into_inner().expect("in memory").as_slice(), &place.inner(), &limits)
        .expect("unpack");
    let run = place.inner().join(long).join("run");
    assert_eq!(fs::read(&run).expect("the single top folder stays"), b"hi");
    assert_eq!(fs::metadata(run).expect("there").permissions().mode() & 0o777, 0o755);
}

/// Makes the checksums right again, so that damage is met behind them.
fn repair(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        let mut header = Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
}

proptest::proptest! {
    /// Whatever the bytes: no panic, and nothing outside.
    #[test]
    fn damaged_archives_write_nothing_outside(
        changes in proptest::collection::vec((0_usize..6000, proptest::num::u8::ANY), 1..8),
        compressed in proptest::bool::ANY,
    ) {
        let tar = Tar::default().directory("a").file("a/b").symlink("c", "a/b");
        let tar = tar.hard_link("d", "a/b").entry(EntryType::GNULongName, "l", "", &[b'n'; 200]);
        let mut tar = tar.file("x").end();
        if compressed {
            tar = zstd::encode_all(tar.as_slice(), 1).expect("in memory");
        }
        for (position, value) in changes {
            let position = position % tar.len();
            tar[position] = value;
        }
        if !compressed {
            repair(&mut tar);
        }
        let place = Place::new("damaged");
        let _ = unpack(tar.as_slice(), &place.inner(), &LIMITS);
        place.assert_untouched();
    }
}
