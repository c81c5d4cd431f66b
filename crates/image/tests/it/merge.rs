//! What layers mean together, in tables: layers bottom first, then the expected tree.

use situla_image::{
    Child, Directory, InodeKind, Ledger, Level, MemorySink, MergeError, Merger, TarReader, Tree,
};

use crate::tar_builder::TarBuilder;

/// Merges layers given bottom first, as images list them.
fn merge(layers: &[Vec<u8>]) -> Result<(Tree<Vec<u8>>, u64), MergeError> {
    let mut sink = MemorySink::default();
    let top = u32::try_from(layers.len()).expect("few layers");
    let ledger = Ledger::default();
    let mut merger = Merger::new(&mut sink, &ledger, Level(top));
    for (idx, layer) in layers.iter().enumerate().rev() {
        merger.layer(
            Level(u32::try_from(idx).expect("few layers") + 1),
            &mut TarReader::new(layer.as_slice()),
        )?;
        if merger.end_layer()? {
            merger.rescue(&mut TarReader::new(layer.as_slice()))?;
        }
    }
    let tree = merger.finish()?;
    Ok((tree, sink.n_bytes))
}

/// Writes a tree as lines: `path/`, `path=content`, `path->target`; `#n` numbers inodes with several names.
fn show(tree: &Tree<Vec<u8>>) -> Vec<String> {
    fn walk(tree: &Tree<Vec<u8>>, counts: &[u32], dir: &Directory, path: &str, out: &mut Vec<String>) {
        for (name, child) in &dir.children {
            let full = format!("{path}{}", String::from_utf8_lossy(name));
            match child {
                Child::Directory(sub) => {
                    out.push(format!("{full}/"));
                    walk(tree, counts, sub, &format!("{full}/"), out);
                }
                Child::Inode(id) => {
                    let linked =
                        if counts[id.index()] > 1 { format!("#{}", id.index()) } else { String::new() };
                    out.push(match &tree.inodes[id.index()].kind {
                        InodeKind::File { content, .. } => {
                            format!("{full}={}{linked}", String::from_utf8_lossy(content))
                        }
                        InodeKind::Symlink(target) => {
                            format!("{full}->{}{linked}", String::from_utf8_lossy(target))
                        }
                        other => format!("{full}:{other:?}{linked}"),
                    });
                }
            }
        }
    }
    let mut out = Vec::new();
    walk(tree, &tree.link_counts(), &tree.root, "", &mut out);
    out
}

fn t() -> TarBuilder {
    TarBuilder::new()
}

fn check(name: &str, layers: &[TarBuilder], want: &[&str]) {
    let built: Vec<Vec<u8>> = layers.iter().map(|l| l.clone().build()).collect();
    let (tree, _) = merge(&built).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(show(&tree), want, "{name}");
    assert!(tree.link_counts().iter().all(|n| *n > 0), "{name}: an inode without a name");
}

#[test]
fn upper_layers_hide_lower_ones() {
    check("added", &[t().file("a", b"1"), t().file("b", b"2")], &["a=1", "b=2"]);
    check("replaced", &[t().file("a", b"1"), t().file("a", b"2")], &["a=2"]);
    check("file by dir", &[t().file("a", b"1"), t().dir("a").file("a/b", b"2")], &["a/", "a/b=2"]);
    check("file by implicit dir", &[t().file("a", b"1"), t().file("a/b", b"2")], &["a/", "a/b=2"]);
    check("dir by file", &[t().dir("a").file("a/b", b"1"), t().file("a", b"2")], &["a=2"]);
    check("dir by symlink", &[t().dir("a").file("a/b", b"1"), t().symlink("a", "c")], &["a->c"]);
    check("symlink by explicit dir", &[t().symlink("a", "c"), t().dir("a")], &["a/"]);
    check(
        "dir by file by dir",
        &[t().file("a/old", b"1"), t().file("a", b"2"), t().dir("a").file("a/new", b"3")],
        &["a/", "a/new=3"],
    );
    check(
        "dir by file by implicit dir",
        &[t().dir("a").file("a/old", b"1"), t().file("a", b"2"), t().file("a/new", b"3")],
        &["a/", "a/new=3"],
    );
    check(
        "directories merge",
        &[t().file("a/x", b"1"), t().dir("a").file("a/y", b"2")],
        &["a/", "a/x=1", "a/y=2"],
    );
}

#[test]
fn whiteouts_hide_only_lower_layers() {
    check("file", &[t().file("a", b"1"), t().file(".wh.a", b"")], &[]);
    check("dir", &[t().dir("d").file("d/a", b"1"), t().file(".wh.d", b"")], &[]);
    check("same layer keeps", &[t().file("a", b"1"), t().file(".wh.a", b"").file("a", b"2")], &["a=2"]);
    check(
        "same layer keeps, other order",
        &[t().file("a", b"1"), t().file("a", b"2").file(".wh.a", b"")],
        &["a=2"],
    );
    check(
        "dir recreated in the same layer is empty",
        &[t().dir("d").file("d/old", b"1"), t().file(".wh.d", b"").dir("d").file("d/new", b"2")],
        &["d/", "d/new=2"],
    );
    check(
        "dir recreated before its whiteout is empty too",
        &[t().dir("d").file("d/old", b"1"), t().dir("d").file("d/new", b"2").file(".wh.d", b"")],
        &["d/", "d/new=2"],
    );
    check(
        "dir recreated above is empty",
        &[t().dir("d").file("d/old", b"1"), t().file(".wh.d", b""), t().dir("d").file("d/new", b"2")],
        &["d/", "d/new=2"],
    );
    check(
        "recreated implicitly above",
        &[t().dir("d").file("d/old", b"1"), t().file(".wh.d", b""), t().file("d/new", b"2")],
        &["d/", "d/new=2"],
    );
    check(
        "deep",
        &[t().dir("d").file("d/e/a", b"1").file("d/b", b"2"), t().file("d/e/.wh.a", b"")],
        &["d/", "d/b=2"],
    );
    check(
        "below a file of the same layer",
        &[t().file("d/a", b"1"), t().file("d", b"2").file("d/.wh.a", b"").file("d/.wh..wh..opq", b"")],
        &["d=2"],
    );
    check("of nothing", &[t().file("a", b"1"), t().file("x/.wh.y", b"")], &["a=1"]);
    check("in the lowest layer", &[t().file("a", b"1").file(".wh.a", b"").file("d/.wh.x", b"")], &["a=1"]);
    check("below a file", &[t().file("d/a", b"1"), t().file("d/.wh.a", b""), t().file("d", b"2")], &["d=2"]);
    check(
        "reserved names mean nothing",
        &[t().file("a", b"1"), t().file(".wh..wh.plnk", b"").file(".wh..wh.aufs/x", b"")],
        &[".wh..wh.aufs/", ".wh..wh.aufs/x=", "a=1"],
    );
    for bad in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        let result = merge(&[t().file(bad, b"").build()]);
        assert!(matches!(result, Err(MergeError::BadWhiteout(_))), "{bad}");
    }
}

#[test]
fn opaque_directories_start_empty() {
    let low = t().dir("d").file("d/a", b"1").file("d/s/b", b"2").file("k", b"3");
    let up = t().dir("d").file("d/.wh..wh..opq", b"").file("d/c", b"4");
    check("marker first", &[low.clone(), up], &["d/", "d/c=4", "k=3"]);
    let up = t().dir("d").file("d/c", b"4").file("d/.wh..wh..opq", b"");
    check("marker last", &[low.clone(), up.clone()], &["d/", "d/c=4", "k=3"]);
    check(
        "layers above and between",
        &[low.clone(), t().file("d/mid", b"5"), up, t().file("d/top", b"6")],
        &["d/", "d/c=4", "d/top=6", "k=3"],
    );
    check("root", &[low, t().file(".wh..wh..opq", b"").file("x", b"7")], &["x=7"]);
}

#[test]
fn hard_links_share_one_inode() {
    check("in a layer", &[t().file("a", b"1").hardlink("b", "a")], &["a=1#0", "b=1#0"]);
    check("to a lower layer", &[t().file("a", b"1"), t().hardlink("b", "a")], &["a=1#0", "b=1#0"]);
    check(
        "through two layers",
        &[t().file("a", b"1"), t().hardlink("b", "a"), t().hardlink("c", "b")],
        &["a=1#0", "b=1#0", "c=1#0"],
    );
    check(
        "of a link, in a layer",
        &[t().file("a", b"1").hardlink("b", "a").hardlink("c", "b")],
        &["a=1#0", "b=1#0", "c=1#0"],
    );
    check("to a symlink", &[t().symlink("s", "x").hardlink("b", "s")], &["b->x#0", "s->x#0"]);
    check(
        "lower target replaced above",
        &[t().file("a", b"1"), t().hardlink("b", "a"), t().file("a", b"2")],
        &["a=2", "b=1"],
    );
    check(
        "lower target deleted above",
        &[t().file("a", b"1"), t().hardlink("b", "a"), t().file(".wh.a", b"")],
        &["b=1"],
    );
    check(
        "target deleted in the link's layer",
        &[t().file("a", b"1"), t().hardlink("b", "a").file(".wh.a", b"")],
        &["b=1"],
    );
    check(
        "target hidden, link visible",
        &[t().file("a", b"1").hardlink("b", "a").hardlink("c", "a"), t().file("a", b"2")],
        &["a=2", "b=1#1", "c=1#1"],
    );
    check(
        "target and first link hidden",
        &[
            t().file("a", b"1").hardlink("b", "a").hardlink("c", "b"),
            t().file(".wh.a", b"").file(".wh.b", b""),
        ],
        &["c=1"],
    );
    check(
        "hidden file wanted from above through a hidden link",
        &[
            t().file("a", b"1").hardlink("b", "a"),
            t().hardlink("c", "b"),
            t().file(".wh.a", b"").file("b", b"2"),
        ],
        &["b=2", "c=1"],
    );
    check("absolute target", &[t().file("a", b"1").hardlink("b", "/a")], &["a=1#0", "b=1#0"]);
    check(
        "link replaced later in the layer",
        &[t().file("a", b"1").hardlink("b", "a").file("b", b"2")],
        &["a=1", "b=2"],
    );
}

#[test]
fn hard_links_to_nothing_are_refused() {
    let cases = [
        ("missing", vec![t().hardlink("b", "a")]),
        ("to a directory", vec![t().dir("a").hardlink("b", "a")]),
        ("deleted between", vec![t().file("a", b"1"), t().file(".wh.a", b""), t().hardlink("b", "a")]),
        (
            "parent deleted between",
            vec![t().file("d/a", b"1"), t().file(".wh.d", b""), t().hardlink("b", "d/a")],
        ),
        ("only above", vec![t().hardlink("b", "a"), t().file("a", b"1")]),
        ("each other", vec![t().hardlink("b", "a").hardlink("a", "b")]),
        ("itself", vec![t().hardlink("a", "a")]),
    ];
    for (name, layers) in cases {
        let built: Vec<Vec<u8>> = layers.into_iter().map(TarBuilder::build).collect();
        match merge(&built) {
            Err(MergeError::MissingLinkTarget { .. }) => {}
            other => panic!("{name}: {:?}", other.map(|(tree, _)| show(&tree))),
        }
    }
}

#[test]
fn paths_through_symlinks_stay_in_the_image() {
    check(
        "same layer",
        &[t().dir("usr/lib").symlink("lib", "usr/lib").file("lib/x", b"1")],
        &["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/x=1"],
    );
    check(
        "link in a lower layer",
        &[t().dir("usr/lib").file("usr/lib/old", b"0").symlink("lib", "usr/lib"), t().file("lib/x", b"1")],
        &["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/old=0", "usr/lib/x=1"],
    );
    check(
        "whiteout through a link of a lower layer",
        &[t().symlink("lib", "/usr/lib").dir("usr/lib").file("usr/lib/x", b"1"), t().file("lib/.wh.x", b"")],
        &["lib->/usr/lib", "usr/", "usr/lib/"],
    );
    check(
        "upward links end at the root",
        &[t().symlink("l", "../../../etc").file("l/x", b"1")],
        &["etc/", "etc/x=1", "l->../../../etc"],
    );
    check(
        "an upper link hides the lower directory",
        &[t().file("lib/x", b"1"), t().symlink("lib", "usr")],
        &["lib->usr"],
    );
    let circle = t().symlink("a", "b").symlink("b", "a").file("a/x", b"1").build();
    assert!(matches!(merge(&[circle]), Err(MergeError::TooManySymlinks(_))));
    let below_file = t().file("a", b"1").file("a/x", b"1").build();
    assert!(matches!(merge(&[below_file]), Err(MergeError::NotADirectory(_))));
}

#[test]
fn hidden_contents_are_not_written() {
    let low = t().file("big", &[1; 100_000]).file("keep", b"12345").build();
    let up = t().file(".wh.big", b"").build();
    let (tree, n_bytes) = merge(&[low, up]).unwrap();
    assert_eq!(show(&tree), ["keep=12345"]);
    assert_eq!(n_bytes, 5);
}

#[test]
fn metadata_comes_from_the_uppermost_entry() {
    let low = t().mode(0o700).owner(1, 2).mtime(3).dir("d").file("d/f", b"").build();
    let up = t().mode(0o1777).owner(4, 5).mtime(6).dir("d").build();
    let implicit = t().file("d/g", b"").file("e/f", b"").build();
    let (tree, _) = merge(&[low, up, implicit]).unwrap();
    let Some(Child::Directory(d)) = tree.get("d") else { panic!("d is a directory") };
    assert_eq!((d.meta.mode, d.meta.uid, d.meta.gid, d.meta.mtime), (0o1777, 4, 5, 6));
    let Some(Child::Directory(e)) = tree.get("e") else { panic!("e is a directory") };
    assert_eq!((e.meta.mode, e.meta.uid, e.meta.mtime), (0o755, 0, 0));
}
