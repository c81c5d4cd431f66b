//! Where paths of a site lie in the file system that is worked on: this machine, or a tree that will be one.

use std::path::{Path, PathBuf};

/// The root that paths are looked up below.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// The tree at `path`, or this machine.
    pub(crate) fn new(path: Option<&Path>) -> Self {
        Root(path.unwrap_or(Path::new("/")).to_owned())
    }

    /// Whether it is this machine: then facts of the kernel count, and owners.
    pub(crate) fn is_machine(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where a path of the site lies.
    pub(crate) fn place(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_below_their_root() {
        for (root, path, want) in [
            (None, "/etc/x", "/etc/x"),
            (Some("/"), "/etc/x", "/etc/x"),
            (Some("/srv/tree"), "/etc/x", "/srv/tree/etc/x"),
            (Some("tree"), "/", "tree/"),
        ] {
            let place = Root::new(root.map(Path::new)).place(Path::new(path));
            assert_eq!(place, Path::new(want), "{root:?} {path}");
        }
    }
}
