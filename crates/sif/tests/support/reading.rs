//! A SIF that anybody may have written, read. Shared by the tests of this crate and the fuzz target.
//!
//! Invariant: whatever the bytes are, opening and reading returns, with a result or an error. Every object lies in the
//! file, reading one gives exactly its bytes, and the root file system is one of the objects.

use std::io::{Cursor, Read};

use situla_sif::{Kind, MAX_DESCRIPTORS, SifFile};

/// Opens and reads a SIF; tells whether it is one with a root file system.
pub(crate) fn sif(data: &[u8]) -> bool {
    let Ok(mut sif) = SifFile::open(Cursor::new(data)) else { return false };
    let objects = sif.objects().to_vec();
    assert!(objects.len() as u64 <= MAX_DESCRIPTORS, "a bounded number of objects");
    for object in &objects {
        let end = object.offset.checked_add(object.size);
        assert!(end.is_some_and(|end| end <= data.len() as u64), "{object:?} lies in the file");
        let mut bytes = Vec::new();
        let opened = sif.open_object(object).map(|mut object| object.read_to_end(&mut bytes));
        assert!(opened.is_ok_and(|read| read.is_ok()), "memory can be read");
        assert_eq!(bytes.len() as u64, object.size, "an object is as long as it says");
        if let Ok(read) = sif.read_object(object) {
            assert!(read == bytes);
        }
        if let Kind::Other(data_type) = object.kind {
            let found = sif.find(data_type, &object.name);
            assert!(found.is_some(), "what is listed is found");
        }
    }
    assert!(sif.launch_line().len() <= 4 * 32, "the launch line is a field of 32 bytes");
    match sif.root_partition(situla_sif::Arch::from_go_name("amd64")) {
        Ok(root) => {
            assert!(objects.iter().any(|object| (object.offset, object.size) == (root.offset, root.len)));
            true
        }
        Err(_) => false,
    }
}
