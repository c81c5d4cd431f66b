//! Edits: what they leave, what they refuse, and what a cut at any moment leaves.

#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use situla_sif::{
    Arch, DataType, FsType, HashType, Kind, Link, MAX_ALIGNMENT, MessageFormat, MessageType, NewObject,
    PartType, SbomFormat, SifEditError, SifEditor, SifError, SifFile, SifOptions, SifWriter, Storage,
};

fn arch(name: &str) -> Arch {
    Arch::from_go_name(name)
}

/// A file with a definition file (1) and the primary partition (2).
fn base() -> Vec<u8> {
    let options =
        SifOptions { arch: "amd64".to_owned(), deffile: Some(b"from: x\n".to_vec()), objects: Vec::new() };
    let writer = SifWriter::new(Cursor::new(Vec::new()), options).unwrap();
    writer.write_partition(&mut &[7u8; 5000][..]).unwrap().into_inner()
}

fn new(kind: Kind, name: &str) -> NewObject {
    NewObject { kind, name: name.to_owned(), group: None, link: Link::None, alignment: None }
}

fn json(name: &str) -> NewObject {
    new(Kind::Other(DataType::GenericJson), name)
}

fn partition(part: PartType, arch_name: &str) -> NewObject {
    new(Kind::Partition { fs: FsType::Squashfs, part, arch: arch(arch_name) }, "part")
}

fn editor(bytes: Vec<u8>) -> SifEditor<Cursor<Vec<u8>>> {
    SifEditor::open(Cursor::new(bytes)).unwrap()
}

fn reread(editor: SifEditor<Cursor<Vec<u8>>>) -> SifFile<Cursor<Vec<u8>>> {
    SifFile::open(editor.into_inner()).unwrap()
}

/// Ids and contents, in table order.
fn contents(sif: &mut SifFile<impl Read + Seek>) -> Vec<(u32, Vec<u8>)> {
    let objects = sif.objects().to_vec();
    objects.iter().map(|object| (object.id, sif.read_object(object).unwrap())).collect()
}

#[test]
fn every_type_can_be_added_and_read_back() {
    let digest = "sha256:0123".to_owned();
    let kinds = [
        Kind::Other(DataType::Deffile),
        Kind::Other(DataType::EnvVar),
        Kind::Other(DataType::Labels),
        Kind::Partition { fs: FsType::Ext3, part: PartType::Overlay, arch: arch("arm64") },
        Kind::Partition { fs: FsType::Raw, part: PartType::Data, arch: Arch::UNKNOWN },
        Kind::Signature { hash: HashType::Sha512, entity: [9; 20] },
        Kind::Other(DataType::GenericJson),
        Kind::Other(DataType::Generic),
        Kind::CryptoMessage { format: MessageFormat::OpenPgp, message: MessageType::ClearSignature },
        Kind::Sbom(SbomFormat::SyftJson),
        Kind::OciRootIndex(digest.clone()),
        Kind::OciBlob(digest),
        Kind::Other(DataType::Unknown(0x7001)),
    ];
    let mut editor = editor(base());
    for (index, kind) in kinds.iter().enumerate() {
        let content = vec![u8::try_from(index).unwrap(); index * 100];
        editor.add(new(kind.clone(), "n"), &mut content.as_slice(), 5).unwrap();
    }
    let mut sif = reread(editor);
    let added: Vec<_> = sif.objects()[2..].iter().map(|object| object.kind.clone()).collect();
    assert_eq!(added, kinds);
    for (index, (id, content)) in contents(&mut sif)[2..].iter().enumerate() {
        assert_eq!((*id as usize, content.len()), (index + 3, index * 100));
        assert!(content.iter().all(|byte| usize::from(*byte) == index));
    }
    let aligned =
        |kind: &Kind, offset: u64| !matches!(kind, Kind::Partition { .. }) || offset.is_multiple_of(4096);
    assert!(sif.objects().iter().all(|object| aligned(&object.kind, object.offset)));
    let header = sif.header();
    assert_eq!((header.n_free, header.arch), (48 - 15, arch("amd64")));
    assert_eq!(header.data_offset + header.data_size, sif.into_inner().into_inner().len() as u64);
}

#[test]
fn links_groups_names_and_alignment_are_kept() {
    let mut editor = editor(base());
    let wanted =
        NewObject { group: Some(7), link: Link::Object(2), alignment: Some(512), ..json("a name with ü") };
    editor.add(wanted, &mut &b"{}"[..], 5).unwrap();
    editor.add(NewObject { link: Link::Group(7), ..json("b") }, &mut &b""[..], 5).unwrap();
    let sif = reread(editor);
    let [.., first, second] = sif.objects() else { panic!("two were added") };
    assert_eq!((first.group, first.link, first.name.as_str()), (Some(7), Link::Object(2), "a name with ü"));
    assert_eq!((first.offset % 512, first.size), (0, 2));
    assert_eq!((second.group, second.link, second.size), (None, Link::Group(7), 0));
    // The file holds no times, and none came in.
    assert_eq!((first.created, sif.header().modified), (None, None));
}

#[test]
fn times_are_written_where_the_file_has_them() {
    let mut bytes = base();
    bytes[64..72].copy_from_slice(&1000i64.to_le_bytes());
    let mut editor = editor(bytes);
    let added = editor.add(json("a"), &mut &b"{}"[..], 1234).unwrap();
    assert_eq!((added.created, added.modified), (Some(1234), Some(1234)));
    editor.delete(1, false, 1300).unwrap();
    let sif = reread(editor);
    assert_eq!((sif.header().created, sif.header().modified), (Some(1000), Some(1300)));
}

#[test]
fn deleting_gives_back_what_it_can() {
    let before = base();
    let mut edited = editor(before.clone());
    edited.add(json("a"), &mut &b"{}"[..], 0).unwrap();
    let deleted = edited.delete(3, false, 0).unwrap();
    assert_eq!((deleted.id, deleted.name.as_str()), (3, "a"));
    let back = edited.into_inner().into_inner();
    assert_eq!(back, before, "adding and deleting leaves the same bytes");

    // In the middle the room stays, and is overwritten if asked for.
    for (zero, first) in [(false, b'f'), (true, 0)] {
        let mut edited = editor(before.clone());
        let deleted = edited.delete(1, zero, 0).unwrap();
        let bytes = edited.into_inner().into_inner();
        assert_eq!(bytes.len(), before.len());
        assert_eq!(bytes[usize::try_from(deleted.offset).unwrap()], first, "{zero}");
        let mut sif = SifFile::open(Cursor::new(bytes)).unwrap();
        assert_eq!(contents(&mut sif), [(2, vec![7; 5000])]);
        assert_eq!(sif.header().n_free, 47);
    }
    // A freed slot and its id are used again.
    let mut edited = editor(before);
    edited.delete(1, false, 0).unwrap();
    assert_eq!(edited.add(json("b"), &mut &b"new"[..], 0).unwrap().id, 1);
    let mut sif = reread(edited);
    assert_eq!(contents(&mut sif), [(1, b"new".to_vec()), (2, vec![7; 5000])]);
}

#[test]
fn the_header_names_the_architecture_of_the_primary_partition() {
    let mut edited = editor(base());
    edited.delete(2, false, 0).unwrap();
    assert_eq!(reread(edited).arch(), Arch::UNKNOWN);
    let mut edited = editor(base());
    edited.delete(2, false, 0).unwrap();
    edited.add(partition(PartType::PrimarySystem, "arm64"), &mut &b"x"[..], 0).unwrap();
    let sif = reread(edited);
    assert_eq!((sif.arch(), sif.root_partition(arch("amd64")).unwrap().arch), (arch("arm64"), arch("arm64")));
}

#[test]
fn the_root_file_system_is_chosen_by_architecture() {
    let with = |others: &[(PartType, &str)]| {
        let mut edited = editor(base());
        for (part, name) in others {
            // Two primary partitions come from elsewhere: the editor makes no such file.
            let role = if *part == PartType::PrimarySystem { PartType::System } else { *part };
            let id = edited.add(partition(role, name), &mut name.as_bytes(), 0).unwrap().id;
            if *part == PartType::PrimarySystem {
                let mut bytes = edited.into_inner().into_inner();
                bytes[4096 + (id as usize - 1) * 585 + 205] = 2;
                edited = editor(bytes);
            }
        }
        reread(edited)
    };
    use PartType::{Data, Overlay, PrimarySystem, System};
    for (others, wanted, expected) in [
        (&[][..], "arm64", Some("amd64")),
        (&[(Data, "arm64"), (Overlay, "arm64")], "arm64", Some("amd64")),
        (&[(System, "arm64")], "arm64", Some("arm64")),
        (&[(System, "arm64")], "amd64", Some("amd64")),
        (&[(System, "amd64")], "amd64", Some("amd64")),
        (&[(PrimarySystem, "arm64")], "arm64", Some("arm64")),
        (&[(PrimarySystem, "arm64")], "amd64", Some("amd64")),
        (&[(System, "arm64"), (PrimarySystem, "arm64")], "arm64", Some("arm64")),
        (&[(PrimarySystem, "amd64")], "amd64", None),
        (&[(System, "arm64")], "riscv64", None),
    ] {
        let sif = with(others);
        let found = sif.root_partition(arch(wanted));
        assert_eq!(found.as_ref().ok().map(|root| root.arch.go_name()), expected, "{others:?} {wanted}");
        if let Ok(root) = found {
            assert_eq!(root.len, if root.arch == arch("amd64") { 5000 } else { 5 });
        }
    }
    let message = |sif: SifFile<_>, wanted| sif.root_partition(arch(wanted)).unwrap_err().to_string();
    assert_eq!(
        message(with(&[(System, "arm64")]), "riscv64"),
        "SIF file has no system partition for riscv64 (it has those for amd64, arm64)"
    );
    assert_eq!(
        message(with(&[(PrimarySystem, "amd64")]), "amd64"),
        "SIF file has 2 system partitions for amd64"
    );
    let mut edited = editor(base());
    edited.delete(2, false, 0).unwrap();
    assert!(matches!(reread(edited).root_partition(arch("amd64")), Err(SifError::NoRoot)));
}

/// A source that fails after some bytes.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("gone"));
        }
        let n = self.0.min(buf.len());
        self.0 -= n;
        Ok(n)
    }
}

#[test]
fn refused_edits_change_nothing() {
    let before = base();
    let refused = |new: NewObject| {
        let mut edited = editor(before.clone());
        let error = edited.add(new, &mut &b"x"[..], 0).unwrap_err();
        assert!(edited.into_inner().into_inner() == before, "{error}");
        error
    };
    assert!(matches!(refused(partition(PartType::PrimarySystem, "arm64")), SifEditError::SecondPrimary(2)));
    assert!(matches!(refused(json(&"n".repeat(128))), SifEditError::Name));
    assert!(matches!(refused(json("a\0b")), SifEditError::Name));
    let linked = |link| NewObject { link, ..json("a") };
    let unknown = refused(linked(Link::Object(9)));
    assert_eq!(unknown.to_string(), "SIF file has no object 9 (it has 1, 2)");
    assert!(matches!(refused(linked(Link::Group(2))), SifEditError::UnknownGroup(2)));
    for group in [0, 0xf000_0001] {
        let object = NewObject { group: Some(group), ..json("a") };
        assert!(matches!(refused(object), SifEditError::Field), "{group}");
    }
    let apart = NewObject { alignment: Some(MAX_ALIGNMENT + 1), ..json("a") };
    assert!(matches!(refused(apart), SifEditError::Alignment(_)));

    let mut edited = editor(before.clone());
    assert!(matches!(edited.add(json("a"), &mut Failing(2 << 20), 0), Err(SifEditError::Source(_))));
    assert!(edited.into_inner().into_inner() == before);
    let mut edited = editor(before.clone());
    let error = edited.delete(3, true, 0).unwrap_err();
    assert!(matches!(error, SifEditError::Read(SifError::UnknownId { id: 3, .. })));
    assert!(edited.into_inner().into_inner() == before);

    let mut edited = editor(before);
    for _ in 2..48 {
        edited.add(json("a"), &mut &b"x"[..], 0).unwrap();
    }
    assert!(matches!(edited.add(json("a"), &mut &b"x"[..], 0), Err(SifEditError::Full(48))));
    let sif = reread(edited);
    assert_eq!((sif.objects().len(), sif.header().n_free), (48, 0));
    assert!(matches!(
        SifEditor::open(Cursor::new(b"no SIF".to_vec())),
        Err(SifEditError::Read(SifError::NotSif))
    ));
}

/// A disk that loses power after a number of writes: what was not synced may be there or not.
struct Disk {
    /// What programs see.
    seen: Cursor<Vec<u8>>,
    /// What survives.
    durable: Vec<u8>,
    n_left: usize,
}

impl Disk {
    fn new(bytes: Vec<u8>, n_left: usize) -> Self {
        Self { seen: Cursor::new(bytes.clone()), durable: bytes, n_left }
    }

    fn spend(&mut self) -> io::Result<()> {
        self.n_left = self.n_left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        Ok(())
    }
}

impl Read for Disk {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.seen.read(buf)
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.seen.seek(to)
    }
}

impl Write for Disk {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // The descriptor is longer than what disks write at once: it may be cut.
        self.spend()?;
        self.seen.write(&buf[..buf.len().min(300)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for Disk {
    fn sync(&mut self) -> io::Result<()> {
        self.spend()?;
        self.durable.clone_from(self.seen.get_ref());
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.spend()?;
        Storage::set_len(&mut self.seen, len)
    }
}

#[test]
fn a_cut_at_any_moment_leaves_a_whole_file() {
    let before = base();
    let old = contents(&mut SifFile::open(Cursor::new(before.clone())).unwrap());
    let content = b"0123456789".repeat(100);
    type Edit<'a> = &'a dyn Fn(&mut SifEditor<&mut Disk>) -> Result<(), SifEditError>;
    let add: Edit<'_> = &|editor| editor.add(json("a"), &mut content.as_slice(), 0).map(|_| ());
    let delete_first: Edit<'_> = &|editor| editor.delete(1, true, 0).map(|_| ());
    let delete_last: Edit<'_> = &|editor| editor.delete(2, false, 0).map(|_| ());
    let mut added = old.clone();
    added.push((3, content.clone()));
    for (name, edit, new) in [
        ("add", add, added),
        ("delete first", delete_first, old[1..].to_vec()),
        ("delete last", delete_last, old[..1].to_vec()),
    ] {
        let mut n_cuts = 0;
        for n_left in 0.. {
            let mut disk = Disk::new(before.clone(), n_left);
            let done = edit(&mut SifEditor::open(&mut disk).unwrap()).is_ok();
            for (state, bytes) in [("all", disk.seen.into_inner()), ("synced", disk.durable)] {
                let mut sif = SifFile::open(Cursor::new(bytes))
                    .unwrap_or_else(|error| panic!("{name} after {n_left}, {state}: {error}"));
                let found = contents(&mut sif);
                assert!(found == new || (!done && found == old), "{name} after {n_left}, {state}");
                // What was cut can be edited again, and is right then.
                let mut again = editor(sif.into_inner().into_inner());
                again.add(json("later"), &mut &b"later"[..], 0).unwrap();
                let mut sif = reread(again);
                assert_eq!(sif.header().n_free, 48 - sif.objects().len() as u64);
                let mut latest = contents(&mut sif);
                let later = latest.iter().position(|(_, bytes)| bytes == b"later").unwrap();
                latest.remove(later);
                assert!(latest == found, "{name} after {n_left}, {state}");
            }
            if done {
                break;
            }
            n_cuts += 1;
        }
        assert!(n_cuts >= 8, "{name}: the disk was cut {n_cuts} times");
    }
}
