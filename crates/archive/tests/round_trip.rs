//! What is packed comes back, and nothing else does.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
};

use archive::{Compression, PackError, PackOptions, Summary, UnpackLimits, pack, unpack};
use proptest::prelude::*;

struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let root = std::env::temp_dir().join(format!("hearth-pack-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("from")).expect("create");
        fs::create_dir_all(root.join("to")).expect("create");
        Self(root)
    }

    fn from(&self) -> PathBuf {
        self.0.join("from")
    }

    fn to(&self) -> PathBuf {
        self.0.join("to")
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.from().join(path);
        fs::create_dir_all(path.parent().expect("in `from`")).expect("create");
        fs::write(path, content).expect("write");
    }

    fn round_trip(&self, compression: Compression) -> Summary {
        let packed = packed(&self.from(), compression);
        unpack(packed.as_slice(), &self.to(), &UnpackLimits::default()).expect("unpack")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn packed(directory: &Path, compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(directory, &mut bytes, &PackOptions { compression, everything: false }).expect("pack");
    bytes
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File { content: Vec<u8>, is_executable: bool },
    Directory,
    Link(PathBuf),
}

/// All that is below a directory.
fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    fn walk(root: &Path, directory: &Path, nodes: &mut BTreeMap<PathBuf, Node>) {
        for entry in fs::read_dir(directory).expect("read").flatten() {
            let path = entry.path();
            let metadata = path.symlink_metadata().expect("there");
            let node = if metadata.is_symlink() {
                Node::Link(fs::read_link(&path).expect("a link"))
            } else if metadata.is_dir() {
                walk(root, &path, nodes);
                Node::Directory
            } else {
                let is_executable = metadata.permissions().mode() & 0o777 == 0o755;
                Node::File { content: fs::read(&path).expect("read"), is_executable }
            };
            nodes.insert(path.strip_prefix(root).expect("below").into(), node);
        }
    }
    let mut nodes = BTreeMap::new();
    walk(root, root, &mut nodes);
    nodes
}

fn names(root: &Path) -> Vec<String> {
    tree(root).into_keys().map(|path| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn equal_trees_give_equal_bytes() {
    let (one, other) = (Place::new("equal-one"), Place::new("equal-other"));
    one.write("a/x", "1");
    one.write("b", "2");
    other.write("b", "2");
    other.write("a/x", "1");
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(other.from().join("b"), mode(0o600)).expect("chmod");
    fs::set_permissions(other.from().join("a"), mode(0o700)).expect("chmod");
    let file = fs::File::options().write(true).open(other.from().join("b")).expect("open");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
    for compression in [Compression::Gzip, Compression::Zstd] {
        assert_eq!(packed(&one.from(), compression), packed(&other.from(), compression));
    }
}

#[test]
fn what_nobody_wants_to_send_stays_behind() {
    let place = Place::new("left-out");
    for path in [
        "index.js",
        ".git/config",
        "package.json",
        "node_modules/lib/index.js",
        "vendored/node_modules/lib.js",
        "a/__pycache__/x.pyc",
        ".venv/bin/python",
        ".env",
        "a/.env.production",
        "b/hearth.toml",
        "hearth.toml",
        ".environment",
    ] {
        place.write(path, "x");
    }
    let _socket = UnixListener::bind(place.from().join("socket")).expect("a socket");
    let packed = packed(&place.from(), Compression::Zstd);
    unpack(packed.as_slice(), &place.to(), &UnpackLimits::default()).expect("unpack");
    let expected = [
        ".environment",
        "a",
        "b",
        "b/hearth.toml",
        "index.js",
        "package.json",
        "vendored",
        "vendored/node_modules",
        "vendored/node_modules/lib.js",
    ];
    assert_eq!(names(&place.to()), expected, "a package manager would not bring those back");
    let mut bytes = Vec::new();
    let options = PackOptions { compression: Compression::Gzip, everything: false };
    let summary = pack(&place.from(), &mut bytes, &options).expect("pack");
    assert_eq!((summary.left_out, summary.environment_files), (8, 2));
}

#[test]
fn what_was_built_is_packed_whole() {
    let place = Place::new("whole");
    for path in [".gitignore", "node_modules/x", "package.json", "__pycache__/y.pyc", "a.log"] {
        place.write(path, "*.log");
    }
    let options = PackOptions { compression: Compression::Zstd, everything: true };
    let mut bytes = Vec::new();
    let summary = pack(&place.from(), &mut bytes, &options).expect("pack");
    assert_eq!((summary.files, summary.left_out), (5, 0));
}

#[test]
fn an_ignore_file_decides() {
    let place = Place::new("ignore");
    for path in ["a.log", "keep.log", "d/b.log", "secret/key", "node_modules/x", "package.json"] {
        place.write(path, "x");
    }
    place.write(".gitignore", "*.log\n!keep.log\n/secret/\n");
    place.round_trip(Compression::Gzip);
    assert_eq!(names(&place.to()), [".gitignore", "d", "keep.log", "package.json"]);

    let place = Place(place.0.clone());
    fs::remove_dir_all(place.to()).expect("remove");
    fs::create_dir(place.to()).expect("create");
    place.write(".hearthignore", "*.json\n!node_modules\n!.env\n!hearth.toml\n");
    place.write(".env", "A=1");
    place.write("hearth.toml", "x");
    place.round_trip(Compression::Zstd);
    let all = names(&place.to());
    assert!(
        all.contains(&"node_modules/x".into()) && all.contains(&"secret/key".into()),
        "{all:?}"
    );
    assert!(all.contains(&".env".into()) && all.contains(&"hearth.toml".into()), "named: {all:?}");
    assert!(!all.contains(&"package.json".into()), "{all:?}");
    assert!(!all.contains(&".hearthignore".into()), "{all:?}");
}

#[test]
fn a_link_that_nobody_could_unpack_is_refused_by_name() {
    let place = Place::new("outside");
    place.write("a/file", "x");
    std::os::unix::fs::symlink("/usr/bin/python3", place.from().join("a/python")).expect("link");
    let options = PackOptions { compression: Compression::Gzip, everything: false };
    let error = pack(&place.from(), Vec::new(), &options).expect_err("it points outside");
    assert!(matches!(&error, PackError::Link { path, .. } if path == Path::new("a/python")));
    assert!(error.to_string().contains(".hearthignore"), "{error}");
}

#[test]
fn unreadable_folders_and_ignore_files_are_named() {
    let place = Place::new("unreadable");
    let options = PackOptions { compression: Compression::Gzip, everything: false };
    let missing = pack(&place.from().join("missing"), Vec::new(), &options).expect_err("missing");
    assert!(missing.to_string().contains("missing"), "{missing}");
    place.write(".hearthignore", "a{b\n[\n");
    let mistake = pack(&place.from(), Vec::new(), &options).expect_err("not a pattern");
    assert!(matches!(mistake, PackError::Ignore(_)), "{mistake}");
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,3}",
        "[a-zA-Z0-9 ._äß*\\[-]{1,12}"
            .prop_filter("names a file", |name| name != "." && name != ".."),
        "[a-z]{60,120}",
    ]
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => (proptest::collection::vec(any::<u8>(), 0..2000), any::<bool>())
            .prop_map(|(content, is_executable)| Node::File { content, is_executable }),
        1 => Just(Node::Directory),
        1 => proptest::collection::vec(name(), 1..4)
            .prop_map(|names| Node::Link(names.iter().collect())),
    ]
}

/// Makes a node, unless something else is in its way.
fn make(root: &Path, path: &Path, node: &Node) {
    let path = root.join(path);
    if fs::create_dir_all(path.parent().expect("below")).is_err() || path.symlink_metadata().is_ok()
    {
        return;
    }
    match node {
        Node::Directory => fs::create_dir(&path).expect("create"),
        Node::Link(target) => std::os::unix::fs::symlink(target, &path).expect("link"),
        Node::File { content, is_executable } => {
            fs::write(&path, content).expect("write");
            let mode = if *is_executable { 0o755 } else { 0o600 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_packed_comes_back(
        nodes in proptest::collection::vec((proptest::collection::vec(name(), 1..5), node()), 1..20),
        zstd in any::<bool>(),
    ) {
        let place = Place::new("any");
        for (path, node) in &nodes {
            // A link's own target may be in the way of a directory.
            make(&place.from(), &path.iter().collect::<PathBuf>(), node);
        }
        let compression = if zstd { Compression::Zstd } else { Compression::Gzip };
        place.round_trip(compression);
        prop_assert_eq!(tree(&place.from()), tree(&place.to()));
        prop_assert_eq!(packed(&place.from(), compression), packed(&place.to(), compression));
    }
}
