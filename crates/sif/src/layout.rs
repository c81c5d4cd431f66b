//! Numbers of the format: offsets and sizes.

/// Size of the global header.
pub(crate) const HEADER_LEN: usize = 128;
/// Size of one descriptor.
pub(crate) const DESCRIPTOR_LEN: usize = 585;
/// Length of the launch line field, padding included.
pub(crate) const LAUNCH_LEN: usize = 32;
pub(crate) const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
pub(crate) const VERSION: &[u8; 3] = b"01\0";
/// Length of a descriptor's name field, padding included.
pub(crate) const NAME_LEN: usize = 128;

/// Offsets inside the header.
pub(crate) mod header {
    pub(crate) const MAGIC: usize = 32;
    pub(crate) const VERSION: usize = 42;
    pub(crate) const ARCH: usize = 45;
    pub(crate) const ID: usize = 48;
    pub(crate) const CREATED: usize = 64;
    pub(crate) const MODIFIED: usize = 72;
    pub(crate) const DESCR_FREE: usize = 80;
    pub(crate) const DESCR_TOTAL: usize = 88;
    pub(crate) const DESCR_OFFSET: usize = 96;
    pub(crate) const DESCR_SIZE: usize = 104;
    pub(crate) const DATA_OFFSET: usize = 112;
    pub(crate) const DATA_SIZE: usize = 120;
}

/// Offsets inside a descriptor.
pub(crate) mod descriptor {
    pub(crate) const DATA_TYPE: usize = 0;
    pub(crate) const USED: usize = 4;
    pub(crate) const ID: usize = 5;
    pub(crate) const GROUP: usize = 9;
    pub(crate) const LINK: usize = 13;
    pub(crate) const OFFSET: usize = 17;
    pub(crate) const SIZE: usize = 25;
    pub(crate) const SIZE_PADDED: usize = 33;
    pub(crate) const CREATED: usize = 41;
    pub(crate) const MODIFIED: usize = 49;
    pub(crate) const UID: usize = 57;
    pub(crate) const GID: usize = 65;
    pub(crate) const NAME: usize = 73;
    pub(crate) const EXTRA: usize = 201;
}

/// What the format's own tools write for "no time": year 1, in Unix seconds. A file whose creation has it
/// is meant to depend on its content alone.
pub(crate) const NO_TIME: i64 = -62_135_596_800;
/// Room for the fields of a type.
pub(crate) const EXTRA_LEN: usize = DESCRIPTOR_LEN - descriptor::EXTRA;

/// Copies the `N` bytes at `at`; all callers pass offsets inside fixed-size records.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The text before the padding; invalid UTF-8 is replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Marks a group id, and a link that points to a group.
pub(crate) const GROUP_MASK: u32 = 0xf000_0000;
