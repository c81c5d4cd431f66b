//! Numbers of the format: offsets, sizes and codes.

use std::fmt;

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
    pub(crate) const NAME: usize = 73;
    pub(crate) const EXTRA: usize = 201;
}

/// Marks a group id, and a link that points to a group.
pub(crate) const GROUP_MASK: u32 = 0xf000_0000;

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// A definition file.
    Deffile,
    /// Environment variables (not used by current tools).
    EnvVar,
    /// Labels (not used by current tools).
    Labels,
    /// A file system image.
    Partition,
    /// A signature.
    Signature,
    /// A JSON document.
    GenericJson,
    /// Anything.
    Generic,
    /// An encrypted key.
    CryptoMessage,
    /// A software bill of materials.
    Sbom,
    /// The index of an OCI image kept in the file.
    OciRootIndex,
    /// A blob of an OCI image kept in the file.
    OciBlob,
    /// A code that this version does not know.
    Unknown(i32),
}

const DATA_TYPES: [(DataType, i32); 11] = [
    (DataType::Deffile, 0x4001),
    (DataType::EnvVar, 0x4002),
    (DataType::Labels, 0x4003),
    (DataType::Partition, 0x4004),
    (DataType::Signature, 0x4005),
    (DataType::GenericJson, 0x4006),
    (DataType::Generic, 0x4007),
    (DataType::CryptoMessage, 0x4008),
    (DataType::Sbom, 0x4009),
    (DataType::OciRootIndex, 0x400a),
    (DataType::OciBlob, 0x400b),
];

impl DataType {
    /// Reads a code.
    #[must_use]
    pub fn from_code(code: i32) -> Self {
        DATA_TYPES.iter().find(|(_, c)| *c == code).map_or(Self::Unknown(code), |(t, _)| *t)
    }

    /// Returns the code.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Unknown(code) => code,
            known => DATA_TYPES.iter().find(|(t, _)| *t == known).map_or(0, |(_, c)| *c),
        }
    }
}

/// File system of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FsType {
    /// SquashFS.
    Squashfs,
    /// ext3.
    Ext3,
    /// An archive that is never changed.
    ImmutableArchive,
    /// Raw bytes.
    Raw,
    /// SquashFS in a LUKS2 volume.
    EncryptedSquashfs,
    /// SquashFS holding a gocryptfs tree.
    GocryptfsSquashfs,
    /// A code that this version does not know.
    Unknown(i32),
}

impl FsType {
    /// Reads a code.
    #[must_use]
    pub fn from_code(code: i32) -> Self {
        match code {
            1 => Self::Squashfs,
            2 => Self::Ext3,
            3 => Self::ImmutableArchive,
            4 => Self::Raw,
            5 => Self::EncryptedSquashfs,
            6 => Self::GocryptfsSquashfs,
            other => Self::Unknown(other),
        }
    }

    /// Returns the code.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Squashfs => 1,
            Self::Ext3 => 2,
            Self::ImmutableArchive => 3,
            Self::Raw => 4,
            Self::EncryptedSquashfs => 5,
            Self::GocryptfsSquashfs => 6,
            Self::Unknown(code) => code,
        }
    }
}

/// Role of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartType {
    /// A system that is not started from.
    System,
    /// The root file system; a file has exactly one.
    PrimarySystem,
    /// Data.
    Data,
    /// A writable overlay.
    Overlay,
    /// A code that this version does not know.
    Unknown(i32),
}

impl PartType {
    /// Reads a code.
    #[must_use]
    pub fn from_code(code: i32) -> Self {
        match code {
            1 => Self::System,
            2 => Self::PrimarySystem,
            3 => Self::Data,
            4 => Self::Overlay,
            other => Self::Unknown(other),
        }
    }

    /// Returns the code.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::System => 1,
            Self::PrimarySystem => 2,
            Self::Data => 3,
            Self::Overlay => 4,
            Self::Unknown(code) => code,
        }
    }
}

/// Architecture code of a file or partition: two decimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arch([u8; 2]);

const ARCHES: [(&str, &[u8; 2]); 13] = [
    ("386", b"01"),
    ("amd64", b"02"),
    ("arm", b"03"),
    ("arm64", b"04"),
    ("ppc64", b"05"),
    ("ppc64le", b"06"),
    ("mips", b"07"),
    ("mipsle", b"08"),
    ("mips64", b"09"),
    ("mips64le", b"10"),
    ("s390x", b"11"),
    ("riscv64", b"12"),
    ("loong64", b"13"),
];

impl Arch {
    /// The code for "not known".
    pub const UNKNOWN: Self = Self(*b"00");

    /// Returns the code of an architecture in Go's naming; [`Arch::UNKNOWN`] if the format has none.
    #[must_use]
    pub fn from_go_name(name: &str) -> Self {
        ARCHES.iter().find(|(n, _)| *n == name).map_or(Self::UNKNOWN, |(_, code)| Self(**code))
    }

    /// Returns the architecture in Go's naming, or `unknown`.
    #[must_use]
    pub fn go_name(self) -> &'static str {
        ARCHES.iter().find(|(_, code)| **code == self.0).map_or("unknown", |(name, _)| *name)
    }

    pub(crate) fn from_field(field: [u8; 3]) -> Self {
        Self([field[0], field[1]])
    }

    pub(crate) fn field(self) -> [u8; 3] {
        [self.0[0], self.0[1], 0]
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.go_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_a_round_trip() {
        for code in 0x3fff..0x4010 {
            assert_eq!(DataType::from_code(code).code(), code);
        }
        for code in -1..9 {
            assert_eq!(FsType::from_code(code).code(), code);
            assert_eq!(PartType::from_code(code).code(), code);
        }
        assert_eq!(Arch::from_go_name("arm64").go_name(), "arm64");
        assert_eq!(Arch::from_go_name("vax"), Arch::UNKNOWN);
    }
}
