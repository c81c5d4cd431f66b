//! One descriptor: what an object is, and where it lies.

use crate::codes::{Arch, DataType, FsType, HashType, MessageFormat, MessageType, PartType, SbomFormat};
use crate::layout::{DESCRIPTOR_LEN, EXTRA_LEN, GROUP_MASK, NAME_LEN, descriptor as at, field, text};

/// Bytes of a signer's fingerprint that tools look at; the field has room for 256.
const FINGERPRINT_LEN: usize = 20;

/// Type of an object and the fields of that type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A partition.
    Partition {
        /// File system.
        fs: FsType,
        /// Role.
        part: PartType,
        /// Architecture.
        arch: Arch,
    },
    /// A signature; what it signs is the object or group that it links to.
    Signature {
        /// Hash.
        hash: HashType,
        /// Fingerprint of the signer's key; zero where the signature is not by PGP.
        entity: [u8; FINGERPRINT_LEN],
    },
    /// A cryptographic message.
    CryptoMessage {
        /// Format.
        format: MessageFormat,
        /// Content.
        message: MessageType,
    },
    /// A bill of materials.
    Sbom(SbomFormat),
    /// The index of an OCI image, with the digest that its writer gave it.
    OciRootIndex(String),
    /// A blob of an OCI image, with the digest that its writer gave it.
    OciBlob(String),
    /// Any other object, which has no fields of its own.
    Other(DataType),
}

impl Kind {
    /// Returns the type alone.
    #[must_use]
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Partition { .. } => DataType::Partition,
            Self::Signature { .. } => DataType::Signature,
            Self::CryptoMessage { .. } => DataType::CryptoMessage,
            Self::Sbom(_) => DataType::Sbom,
            Self::OciRootIndex(_) => DataType::OciRootIndex,
            Self::OciBlob(_) => DataType::OciBlob,
            Self::Other(data_type) => *data_type,
        }
    }

    fn parse(data_type: DataType, extra: &[u8]) -> Self {
        let code = |offset| i32::from_le_bytes(field(extra, offset));
        match data_type {
            DataType::Partition => Self::Partition {
                fs: FsType::from_code(code(0)),
                part: PartType::from_code(code(4)),
                arch: Arch::from_field(field(extra, 8)),
            },
            DataType::Signature => {
                Self::Signature { hash: HashType::from_code(code(0)), entity: field(extra, 4) }
            }
            DataType::CryptoMessage => Self::CryptoMessage {
                format: MessageFormat::from_code(code(0)),
                message: MessageType::from_code(code(4)),
            },
            DataType::Sbom => Self::Sbom(SbomFormat::from_code(code(0))),
            DataType::OciRootIndex => Self::OciRootIndex(text(extra)),
            DataType::OciBlob => Self::OciBlob(text(extra)),
            other => Self::Other(other),
        }
    }

    fn extra(&self) -> Vec<u8> {
        let codes = |list: &[i32]| list.iter().flat_map(|code| code.to_le_bytes()).collect::<Vec<u8>>();
        match self {
            Self::Partition { fs, part, arch } => {
                let mut extra = codes(&[fs.code(), part.code()]);
                extra.extend_from_slice(&arch.field());
                extra
            }
            Self::Signature { hash, entity } => {
                let mut extra = codes(&[hash.code()]);
                extra.extend_from_slice(entity);
                extra
            }
            Self::CryptoMessage { format, message } => codes(&[format.code(), message.code()]),
            Self::Sbom(format) => codes(&[format.code()]),
            Self::OciRootIndex(digest) | Self::OciBlob(digest) => digest.as_bytes().to_vec(),
            Self::Other(_) => Vec::new(),
        }
    }
}

/// What an object belongs to, for example a signature to what it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Nothing.
    None,
    /// An object.
    Object(u32),
    /// All objects of a group.
    Group(u32),
}

/// One used descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorInfo {
    /// Object id; no other object of the file has it.
    pub id: u32,
    /// Group, if the object is in one.
    pub group: Option<u32>,
    /// What it belongs to.
    pub link: Link,
    /// Type and its fields.
    pub kind: Kind,
    /// Offset of the object in the file; checked to lie inside it.
    pub offset: u64,
    /// Size of the object in bytes; checked to lie inside the file.
    pub size: u64,
    /// When it was put there, in Unix seconds; `None` where the writer kept times out of the file.
    pub created: Option<i64>,
    /// When it was changed, likewise.
    pub modified: Option<i64>,
    /// Numbers of an owner, which older writers left; they mean nothing here.
    pub owner: (i64, i64),
    /// Name; invalid UTF-8 is replaced.
    pub name: String,
}

impl DescriptorInfo {
    /// Returns where the object ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    /// Parses a used descriptor whose object was found to lie at `place` (offset and size).
    pub(crate) fn parse(raw: &[u8; DESCRIPTOR_LEN], place: (u64, u64)) -> Self {
        let uint = |offset| u32::from_le_bytes(field(raw, offset));
        let long = |offset| i64::from_le_bytes(field(raw, offset));
        let time = |offset| Some(long(offset)).filter(|time| *time != crate::layout::NO_TIME);
        let group = uint(at::GROUP);
        let link = uint(at::LINK);
        let data_type = DataType::from_code(i32::from_le_bytes(field(raw, at::DATA_TYPE)));
        Self {
            id: uint(at::ID),
            group: (group & !GROUP_MASK != 0).then_some(group & !GROUP_MASK),
            link: match link {
                0 => Link::None,
                group if group & GROUP_MASK == GROUP_MASK => Link::Group(group & !GROUP_MASK),
                object => Link::Object(object),
            },
            kind: Kind::parse(data_type, &raw[at::EXTRA..]),
            offset: place.0,
            size: place.1,
            created: time(at::CREATED),
            modified: time(at::MODIFIED),
            owner: (long(at::UID), long(at::GID)),
            name: text(&raw[at::NAME..at::NAME + NAME_LEN]),
        }
    }

    /// Makes the descriptor's bytes, marked as used. `padded` is the size with the padding before it.
    ///
    /// `None` where something does not fit its field: a name or digest that is too long, a group or
    /// object number in the marking bits, a size beyond the signed range.
    pub(crate) fn to_bytes(&self, padded: u64) -> Option<[u8; DESCRIPTOR_LEN]> {
        let extra = self.kind.extra();
        if self.name.len() >= NAME_LEN || extra.len() > EXTRA_LEN {
            return None;
        }
        let plain = |number: u32| (number != 0 && number & GROUP_MASK == 0).then_some(number);
        let group = match self.group {
            None => GROUP_MASK,
            Some(group) => plain(group)? | GROUP_MASK,
        };
        let link = match self.link {
            Link::None => 0,
            Link::Object(id) => plain(id)?,
            Link::Group(id) => plain(id)? | GROUP_MASK,
        };
        let signed = |number: u64| i64::try_from(number).ok();
        let time = |time: Option<i64>| time.unwrap_or(crate::layout::NO_TIME);
        let mut raw = [0u8; DESCRIPTOR_LEN];
        let mut put = |offset: usize, bytes: &[u8]| raw[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(at::DATA_TYPE, &self.kind.data_type().code().to_le_bytes());
        put(at::USED, &[1]);
        put(at::ID, &self.id.to_le_bytes());
        put(at::GROUP, &group.to_le_bytes());
        put(at::LINK, &link.to_le_bytes());
        put(at::OFFSET, &signed(self.offset)?.to_le_bytes());
        put(at::SIZE, &signed(self.size)?.to_le_bytes());
        put(at::SIZE_PADDED, &signed(padded)?.to_le_bytes());
        put(at::CREATED, &time(self.created).to_le_bytes());
        put(at::MODIFIED, &time(self.modified).to_le_bytes());
        put(at::UID, &self.owner.0.to_le_bytes());
        put(at::GID, &self.owner.1.to_le_bytes());
        put(at::NAME, self.name.as_bytes());
        put(at::EXTRA, &extra);
        Some(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: Kind) -> DescriptorInfo {
        DescriptorInfo {
            id: 3,
            group: Some(2),
            link: Link::Group(1),
            kind,
            offset: 40_000,
            size: 9,
            created: Some(5),
            modified: None,
            owner: (1000, 1001),
            name: "name".to_owned(),
        }
    }

    #[test]
    fn every_kind_survives_a_round_trip() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let kinds = [
            Kind::Partition { fs: FsType::Ext3, part: PartType::Overlay, arch: Arch::from_go_name("arm64") },
            Kind::Signature { hash: HashType::Sha384, entity: [7; FINGERPRINT_LEN] },
            Kind::CryptoMessage { format: MessageFormat::Pem, message: MessageType::RsaOaep },
            Kind::Sbom(SbomFormat::SpdxYaml),
            Kind::OciRootIndex(digest.clone()),
            Kind::OciBlob(digest),
            Kind::Other(DataType::GenericJson),
            Kind::Other(DataType::Unknown(0x4999)),
        ];
        for kind in kinds {
            let mut info = info(kind);
            for (group, link) in [(Some(2), Link::Group(1)), (None, Link::None), (None, Link::Object(9))] {
                (info.group, info.link) = (group, link);
                let raw = info.to_bytes(info.size).expect("everything fits");
                assert_eq!(DescriptorInfo::parse(&raw, (info.offset, info.size)), info);
            }
        }
    }

    #[test]
    fn what_does_not_fit_its_field_is_refused() {
        let good = info(Kind::Other(DataType::Generic));
        assert!(good.to_bytes(0).is_some());
        for bad in [
            DescriptorInfo { name: "n".repeat(NAME_LEN), ..good.clone() },
            DescriptorInfo { group: Some(GROUP_MASK), ..good.clone() },
            DescriptorInfo { group: Some(0), ..good.clone() },
            DescriptorInfo { link: Link::Object(GROUP_MASK | 1), ..good.clone() },
            DescriptorInfo { link: Link::Group(0), ..good.clone() },
            DescriptorInfo { size: u64::MAX, ..good.clone() },
            DescriptorInfo { kind: Kind::OciBlob("d".repeat(EXTRA_LEN + 1)), ..good.clone() },
        ] {
            assert!(bad.to_bytes(0).is_none(), "{bad:?}");
        }
    }
}
