use std::path::{Component, Path};

/// Whether a symbolic link stays in the tree, whatever other links that stay in it do.
///
/// `parent` is the link's directory, a path of names below the tree's root. The target may begin
/// with `..`, but not come back to it: `x/..` is the parent of whatever `x` points to, so a pair of
/// harmless links could lead out. With `..` only in front, each step starts from a real directory
/// of the tree or goes down.
pub(crate) fn stays_inside(parent: &Path, target: &Path) -> bool {
    let mut depth = parent.components().count();
    let mut has_descended = false;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => has_descended = true,
            Component::ParentDir if has_descended || depth == 0 => return false,
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !target.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_inside_on_its_own_and_with_others() {
        for (parent, target, expected) in [
            ("", "file", true),
            ("", "./a/b", true),
            ("", ".", true),
            ("a/b", "../../c", true),
            ("a/b", "../..", true), // the root of the tree itself
            ("", "..", false),
            ("a/b", "../../../c", false),
            ("", "/etc/passwd", false),
            ("", "", false),
            // With `a/link` -> `..` these would be one level higher than they look.
            ("", "a/link/..", false),
            ("a", "./b/../c", false),
        ] {
            assert_eq!(
                stays_inside(Path::new(parent), Path::new(target)),
                expected,
                "{parent:?} {target:?}"
            );
        }
    }
}
