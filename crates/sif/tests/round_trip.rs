//! Written files read back, are deterministic, and damaged ones are refused without harm.

use std::io::Cursor;

use situla_sif::{
    Arch, DataType, FsType, LAUNCH_LINE, Region, SifError, SifFile, SifObject, SifOptions, SifWriteError,
    SifWriter,
};

fn options() -> SifOptions {
    let json = |name: &str, text: &str| SifObject {
        data_type: DataType::GenericJson,
        name: name.to_owned(),
        bytes: text.as_bytes().to_vec(),
    };
    SifOptions {
        arch: "amd64".to_owned(),
        deffile: Some(b"bootstrap: docker\n".to_vec()),
        objects: vec![json("oci-config.json", "{\"a\":1}"), json("inspect-metadata.json", "{}")],
    }
}

fn build(payload: &[u8]) -> Vec<u8> {
    let writer = SifWriter::new(Cursor::new(Vec::new()), options()).expect("the options fit");
    writer.write_partition(&mut &payload[..]).expect("memory takes everything").into_inner()
}

#[test]
fn reads_what_it_wrote() {
    let payload: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let bytes = build(&payload);
    assert_eq!(bytes, build(&payload), "same input, same bytes");
    let mut sif = SifFile::open(Cursor::new(&bytes)).unwrap();
    assert_eq!(sif.launch_line(), LAUNCH_LINE);
    assert_eq!(sif.arch(), Arch::from_go_name("amd64"));
    let names: Vec<&str> = sif.objects().iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["deffile", "inspect-metadata.json", "oci-config.json", "rootfs.sqsh"]);
    assert!(sif.objects().iter().enumerate().all(|(i, d)| d.id as usize == i + 1 && d.group == Some(1)));
    let part = sif.root_partition(Arch::UNKNOWN).unwrap();
    assert_eq!((part.fs, part.arch.go_name(), part.offset % 4096), (FsType::Squashfs, "amd64", 0));
    let at = usize::try_from(part.offset).unwrap();
    assert_eq!(&bytes[at..at + payload.len()], payload.as_slice());
    let config = sif.find(DataType::GenericJson, "oci-config.json").unwrap().clone();
    assert_eq!(sif.read_object(&config).unwrap(), b"{\"a\":1}");
}

#[test]
fn a_partition_written_in_place_gives_the_same_file() {
    let payload = vec![7u8; 9000];
    let mut writer = SifWriter::new(Cursor::new(Vec::new()), options()).unwrap();
    std::io::Write::write_all(writer.output(), &payload).unwrap();
    assert_eq!(writer.finish(9000).unwrap().into_inner(), build(&payload));
}

#[test]
fn header_bytes_are_those_of_the_format() {
    let bytes = build(b"x");
    let long = |at: usize| long_at(&bytes, at);
    assert_eq!(&bytes[..32], b"#!/usr/bin/env run-singularity\n\0");
    assert_eq!(&bytes[32..48], b"SIF_MAGIC\x0001\x0002\0");
    assert_eq!(bytes[48..64], [0; 16]);
    assert_eq!(long(64), -62_135_596_800);
    assert_eq!([long(80), long(88), long(96), long(104), long(112)], [44, 48, 4096, 28080, 32176]);
    assert_eq!(long(112) + long(120), i64::try_from(bytes.len()).unwrap());
    assert!(bytes[128..4096].iter().all(|b| *b == 0));
}

fn long_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[test]
fn refuses_damage() {
    let good = build(&[1; 5000]);
    let with = |at: usize, value: i64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        SifFile::open(Cursor::new(bytes)).map(|_| ())
    };
    assert!(matches!(SifFile::open(Cursor::new(b"")), Err(SifError::NotSif)));
    assert!(matches!(SifFile::open(Cursor::new(&good[..127])), Err(SifError::NotSif)));
    assert!(matches!(SifFile::open(Cursor::new(&good[..20_000])), Err(SifError::OutOfBounds { .. })));
    assert!(matches!(SifFile::open(Cursor::new(&good[..good.len() - 1])), Err(SifError::OutOfBounds { .. })));
    for total in [-1, i64::MAX, 47, 1 << 40] {
        assert!(matches!(with(88, total), Err(SifError::Table { .. })), "{total}");
    }
    for offset in [-1, i64::MAX, i64::MAX - 28080, 1 << 40] {
        assert!(matches!(with(96, offset), Err(SifError::OutOfBounds { .. })), "{offset}");
    }
    for value in [-1, 49, i64::MIN] {
        assert!(matches!(with(80, value), Err(SifError::Table { .. })), "{value} free");
    }
    // Offset and size of the data section.
    for value in [-1, i64::MAX, i64::MIN] {
        assert!(matches!(with(112, value), Err(SifError::OutOfBounds { .. })), "{value}");
        assert!(matches!(with(120, value), Err(SifError::OutOfBounds { .. })), "{value}");
    }
    assert!(matches!(with(112, 4096), Err(SifError::Overlap(Region::Table, Region::DataSection))));
    assert!(matches!(with(112, 0), Err(SifError::Overlap(Region::Header, Region::DataSection))));
    // Offset and size of the first object.
    for value in [-1, i64::MAX, i64::MIN] {
        assert!(matches!(with(4096 + 17, value), Err(SifError::OutOfBounds { .. })), "{value}");
        assert!(matches!(with(4096 + 25, value), Err(SifError::OutOfBounds { .. })), "{value}");
    }
    let second = long_at(&good, 4096 + 585 + 17);
    for (offset, with_what) in
        [(0, Region::Header), (127, Region::Header), (4096, Region::Table), (second, Region::Object(2))]
    {
        let Err(SifError::Overlap(first, other)) = with(4096 + 17, offset) else { panic!("{offset}") };
        let mut both = [first, other];
        both.sort_by_key(|region| *region != Region::Object(1));
        assert_eq!(both, [Region::Object(1), with_what], "{offset}");
    }
    let mut twice = good.clone();
    twice[4096 + 585 + 5] = 1;
    assert!(matches!(SifFile::open(Cursor::new(twice)), Err(SifError::SameId(1))));
    let mut version = good.clone();
    version[43] = b'2';
    assert!(matches!(SifFile::open(Cursor::new(version)), Err(SifError::Version(_))));
}

#[test]
fn no_single_changed_byte_makes_the_reader_panic() {
    let good = build(&[1; 100]);
    for at in (0..128).chain(4096..4096 + 4 * 585) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Ok(mut sif) = SifFile::open(Cursor::new(bytes)) {
                let objects = sif.objects().to_vec();
                for object in &objects {
                    assert!(object.offset + object.size <= good.len() as u64);
                    sif.read_object(object).unwrap();
                }
                let _ = sif.root_partition(Arch::UNKNOWN);
            }
        }
    }
}

#[test]
fn refuses_objects_that_do_not_fit() {
    let mut many = options();
    many.objects = vec![many.objects[0].clone(); 47];
    assert!(matches!(SifWriter::new(Cursor::new(Vec::new()), many), Err(SifWriteError::TooManyObjects(49))));
    let mut long = options();
    long.objects[0].name = "n".repeat(128);
    assert!(matches!(SifWriter::new(Cursor::new(Vec::new()), long), Err(SifWriteError::NameTooLong(_))));
}
