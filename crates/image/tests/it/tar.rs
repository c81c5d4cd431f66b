//! The tar reader: dialects, limits, hostile names.

use std::io::Read;
use std::process::Command;

use situla_image::{Entry, EntryKind, TarError, TarReader};

use crate::tar_builder::{TarBuilder, header, seal};

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut tar = TarReader::new(bytes);
    let mut out = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let mut content = Vec::new();
        tar.read_to_end(&mut content).map_err(TarError::Read)?;
        out.push((entry, content));
    }
    Ok(out)
}

#[test]
fn reads_all_kinds() {
    let bytes = TarBuilder::new()
        .owner(7, 8)
        .mtime(99)
        .dir("./d")
        .mode(0o4755)
        .file("./d/f", &[5; 1000])
        .symlink("d/s", "../x")
        .hardlink("d/h", "./d/f")
        .entry(b'3', b"c", b"", b"")
        .entry(b'4', b"b", b"", b"")
        .entry(b'6', b"p", b"", b"")
        .entry(b'5', b"./", b"", b"")
        .build();
    let got = entries(&bytes).unwrap();
    let kinds: Vec<(&[u8], &EntryKind)> = got.iter().map(|(e, _)| (e.path.as_slice(), &e.kind)).collect();
    assert_eq!(
        kinds,
        [
            (&b"d"[..], &EntryKind::Directory),
            (b"d/f", &EntryKind::File { size: 1000 }),
            (b"d/s", &EntryKind::Symlink { target: b"../x".to_vec() }),
            (b"d/h", &EntryKind::HardLink { target: b"d/f".to_vec() }),
            (b"c", &EntryKind::CharDevice { major: 1, minor: 3 }),
            (b"b", &EntryKind::BlockDevice { major: 1, minor: 3 }),
            (b"p", &EntryKind::Fifo),
            (b"", &EntryKind::Directory),
        ]
    );
    assert_eq!(got[1].1, [5; 1000]);
    let meta = &got[1].0.meta;
    assert_eq!((meta.mode, meta.uid, meta.gid, meta.mtime), (0o4755, 7, 8, 99));
}

#[test]
fn pax_and_gnu_records_override_the_header() {
    let long = "l".repeat(150) + "/" + &"m".repeat(200);
    let gnu_name = [long.as_bytes(), b"\0"].concat();
    let bytes = TarBuilder::new()
        .pax("path", long.as_bytes())
        .pax("uid", b"3000000000")
        .pax("mtime", b"-1.25")
        .pax("SCHILY.xattr.user.b", b"2")
        .pax("SCHILY.xattr.user.a", b"1\n")
        .file("short", b"x")
        .entry(b'L', b"././@LongLink", b"", &gnu_name)
        .entry(b'K', b"././@LongLink", b"", b"target-of-link\0")
        .entry(b'2', b"cut", b"cut", b"")
        .entry(b'g', b"global", b"", b"16 comment=long\n")
        .file("after", b"y")
        .build();
    let got = entries(&bytes).unwrap();
    assert_eq!(got[0].0.path, long.as_bytes());
    assert_eq!((got[0].0.meta.uid, got[0].0.meta.mtime), (3_000_000_000, -2));
    let names: Vec<&[u8]> = got[0].0.meta.xattrs.iter().map(|(n, _)| n.as_slice()).collect();
    assert_eq!(names, [b"user.a", b"user.b"]);
    assert_eq!(got[1].0.path, long.as_bytes());
    assert_eq!(got[1].0.kind, EntryKind::Symlink { target: b"target-of-link".to_vec() });
    assert_eq!((got[2].0.path.as_slice(), got[2].0.meta.uid), (&b"after"[..], 0));
}

#[test]
fn refuses_hostile_names() {
    let long_component = "c".repeat(256);
    let long_path = "p/".repeat(2049) + "x";
    let names: [&[u8]; 9] = [
        b"/etc/passwd",
        b"../x",
        b"a/../b",
        b"a/..",
        b"..",
        b"",
        b"nul\0inside",
        long_component.as_bytes(),
        long_path.as_bytes(),
    ];
    for name in names {
        let bytes = TarBuilder::new().pax("path", name).file("x", b"").build();
        let bytes = if name.is_empty() { TarBuilder::new().file("", b"").build() } else { bytes };
        assert!(matches!(entries(&bytes), Err(TarError::HostileName { .. })), "{name:?}");
        if !name.is_empty() && name[0] != b'/' {
            let bytes = TarBuilder::new().pax("linkpath", name).hardlink("x", "y").build();
            assert!(matches!(entries(&bytes), Err(TarError::HostileName { .. })), "link to {name:?}");
        }
    }
    // The root can only be a directory: a link in its place once let files escape in other tools.
    for name in [".", "./", "././"] {
        let bytes = TarBuilder::new().symlink(name, "/etc").build();
        assert!(matches!(entries(&bytes), Err(TarError::HostileName { .. })), "{name:?}");
    }
    let nul_target = TarBuilder::new().pax("linkpath", b"a\0b").symlink("x", "y").build();
    assert!(matches!(entries(&nul_target), Err(TarError::HostileName { .. })));
}

#[test]
fn refuses_damage() {
    let good = TarBuilder::new().file("a", &[1; 700]).file("b", b"x").build();
    for cut in [100, 512, 600, 1000, 1211, 1212, 1300, 1536, 1600] {
        let result = entries(&good[..cut]);
        match cut {
            1536 => assert_eq!(result.unwrap().len(), 1, "a cut at an entry's border ends the archive"),
            1212..1536 => assert_eq!(result.unwrap()[0].1, [1; 700], "and so does one in the padding"),
            _ => assert!(result.is_err(), "cut at {cut}"),
        }
    }
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    assert!(matches!(entries(&flipped), Err(TarError::Checksum)));
    assert!(matches!(entries(&[b'x'; 2048]), Err(TarError::Checksum)));
    let unknown = TarBuilder::new().entry(b'V', b"x", b"", b"").build();
    assert!(matches!(entries(&unknown), Err(TarError::UnsupportedType { flag: 'V', .. })));
    // Sizes that would overflow or exhaust memory.
    let mut huge = header(b'x', b"p", b"", 0, 0, (0, 0), 0);
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    seal(&mut huge);
    assert!(matches!(entries(&huge), Err(TarError::Malformed(_))));
    huge[156] = b'0';
    seal(&mut huge);
    assert!(matches!(entries(&huge), Err(TarError::Malformed(_))));
    let chain = (0..20).fold(TarBuilder::new(), |b, _| b.entry(b'L', b"x", b"", b"name\0"));
    assert!(matches!(entries(&chain.build()), Err(TarError::Malformed(_))));
}

#[test]
fn an_archive_may_lack_its_end_mark() {
    let bytes = TarBuilder::new().file("a", b"1").build_without_end();
    assert_eq!(entries(&bytes).unwrap().len(), 1);
    assert!(entries(&[]).unwrap().is_empty());
}

#[test]
fn skipping_contents_keeps_in_step() {
    let bytes = TarBuilder::new().file("a", &[1; 1300]).file("b", b"2").build();
    let mut tar = TarReader::new(bytes.as_slice());
    tar.next_entry().unwrap().unwrap();
    let mut some = [0; 10];
    tar.read_exact(&mut some).unwrap();
    assert_eq!(tar.next_entry().unwrap().unwrap().path, b"b");
    assert!(tar.next_entry().unwrap().is_none());
}

/// The system's tar writes sparse files in all dialects; what we read must be the files.
#[test]
fn reads_what_gnu_tar_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut content = vec![0u8; 3_000_000];
    for (at, byte) in [(0, 1), (900_000, 2), (1_500_000, 3), (2_000_000, 4), (2_100_000, 5), (2_200_000, 6)] {
        content[at..at + 5000].fill(byte);
    }
    let file = std::fs::File::create(path("sparse")).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for at in (0..content.len()).step_by(1000) {
        if content[at] != 0 {
            std::os::unix::fs::FileExt::write_all_at(&file, &content[at..at + 1000], at as u64).unwrap();
        }
    }
    let long = "n".repeat(220);
    std::fs::write(path(&long), b"long").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), path("link")).unwrap();
    let forms: [&[&str]; 6] = [
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu"],
        &["--format=pax"],
    ];
    for form in forms {
        let output = Command::new("tar")
            .args(form)
            .args(["-cf", "-", "-C"])
            .arg(dir.path())
            .args(["./sparse", &long, "link"])
            .output()
            .expect("tar is on every machine");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let got = entries(&output.stdout).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        assert_eq!(got[0].0.path, b"sparse", "{form:?}");
        assert!(got[0].1 == content, "{form:?}: content differs");
        assert_eq!((got[1].0.path.as_slice(), got[1].1.as_slice()), (long.as_bytes(), &b"long"[..]));
        assert_eq!(got[2].0.kind, EntryKind::Symlink { target: vec![b't'; 300] });
        if form.contains(&"--sparse") {
            assert!(output.stdout.len() < 200_000, "{form:?} was not sparse, the test proves nothing");
        }
    }
}
