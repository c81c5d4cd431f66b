//! The codes of the format: types of objects and what their descriptors say about them.
//!
//! A code that this version does not know is kept as a number, so that such an object survives an edit
//! and can be listed.

use std::fmt;

/// Defines an enumeration of codes with the number, the short name and the name in Apptainer's listings
/// of each.
macro_rules! codes {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal, $short:literal, $long:literal;)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
            /// A code that this version does not know.
            Unknown(i32),
        }

        impl $name {
            /// All that have a name.
            pub const KNOWN: &'static [$name] = &[$($name::$variant),+];

            /// Reads a code.
            #[must_use]
            pub fn from_code(code: i32) -> Self {
                match code {
                    $($code => Self::$variant,)+
                    other => Self::Unknown(other),
                }
            }

            /// Returns the code.
            #[must_use]
            pub fn code(self) -> i32 {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Unknown(code) => code,
                }
            }

            /// Returns the short name that options and JSON use, `unknown` where there is none.
            #[must_use]
            pub fn short(self) -> &'static str {
                match self {
                    $(Self::$variant => $short,)+
                    Self::Unknown(_) => "unknown",
                }
            }

            /// Finds what has a short name.
            #[must_use]
            pub fn from_short(name: &str) -> Option<Self> {
                Self::KNOWN.iter().copied().find(|known| known.short() == name)
            }
        }

        impl fmt::Display for $name {
            /// As Apptainer's `sif list` says it.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $long,)+
                    Self::Unknown(_) => "Unknown",
                })
            }
        }
    };
}

codes! {
    /// What an object holds.
    DataType {
        /// A definition file.
        Deffile = 0x4001, "deffile", "Def.FILE";
        /// Environment variables (not used by current tools).
        EnvVar = 0x4002, "env", "Env.Vars";
        /// Labels (not used by current tools).
        Labels = 0x4003, "labels", "JSON.Labels";
        /// A file system image.
        Partition = 0x4004, "partition", "FS";
        /// A signature.
        Signature = 0x4005, "signature", "Signature";
        /// A JSON document.
        GenericJson = 0x4006, "json", "JSON.Generic";
        /// Anything.
        Generic = 0x4007, "generic", "Generic/Raw";
        /// An encrypted key.
        CryptoMessage = 0x4008, "crypto-message", "Cryptographic Message";
        /// A software bill of materials.
        Sbom = 0x4009, "sbom", "SBOM";
        /// The index of an OCI image kept in the file.
        OciRootIndex = 0x400a, "oci-index", "OCI.RootIndex";
        /// A blob of an OCI image kept in the file.
        OciBlob = 0x400b, "oci-blob", "OCI.Blob";
    }
}

codes! {
    /// File system of a partition.
    FsType {
        /// SquashFS.
        Squashfs = 1, "squashfs", "Squashfs";
        /// ext3.
        Ext3 = 2, "ext3", "Ext3";
        /// An archive that is never changed.
        ImmutableArchive = 3, "archive", "Archive";
        /// Raw bytes.
        Raw = 4, "raw", "Raw";
        /// SquashFS in a LUKS2 volume.
        EncryptedSquashfs = 5, "luks", "Encrypted squashfs";
        /// SquashFS holding a gocryptfs tree.
        GocryptfsSquashfs = 6, "gocryptfs", "Gocryptfs squashfs";
    }
}

codes! {
    /// Role of a partition.
    PartType {
        /// A system that is not started from where the primary one can be.
        System = 1, "system", "System";
        /// The root file system; writers give a file at most one.
        PrimarySystem = 2, "primary", "*System";
        /// Data.
        Data = 3, "data", "Data";
        /// A writable overlay.
        Overlay = 4, "overlay", "Overlay";
    }
}

codes! {
    /// Hash of a signature.
    HashType {
        /// SHA-256.
        Sha256 = 1, "sha256", "SHA-256";
        /// SHA-384.
        Sha384 = 2, "sha384", "SHA-384";
        /// SHA-512.
        Sha512 = 3, "sha512", "SHA-512";
        /// BLAKE2s.
        Blake2s = 4, "blake2s", "BLAKE2s-256";
        /// BLAKE2b.
        Blake2b = 5, "blake2b", "BLAKE2b-256";
    }
}

codes! {
    /// Format of a cryptographic message.
    MessageFormat {
        /// OpenPGP.
        OpenPgp = 1, "openpgp", "OpenPGP";
        /// PEM.
        Pem = 2, "pem", "PEM";
    }
}

codes! {
    /// Content of a cryptographic message.
    MessageType {
        /// A clear-signed text.
        ClearSignature = 0x100, "clear-signature", "Clear Signature";
        /// A key, encrypted by RSA-OAEP.
        RsaOaep = 0x200, "rsa-oaep", "RSA-OAEP";
    }
}

codes! {
    /// Format of a bill of materials.
    SbomFormat {
        /// CycloneDX, JSON.
        CyclonedxJson = 1, "cyclonedx-json", "cyclonedx-json";
        /// CycloneDX, XML.
        CyclonedxXml = 2, "cyclonedx-xml", "cyclonedx-xml";
        /// GitHub's dependency snapshot.
        GithubJson = 3, "github-json", "github-json";
        /// SPDX, JSON.
        SpdxJson = 4, "spdx-json", "spdx-json";
        /// SPDX, RDF.
        SpdxRdf = 5, "spdx-rdf", "spdx-rdf";
        /// SPDX, tags and values.
        SpdxTagValue = 6, "spdx-tag-value", "spdx-tag-value";
        /// SPDX, YAML.
        SpdxYaml = 7, "spdx-yaml", "spdx-yaml";
        /// Syft's own.
        SyftJson = 8, "syft-json", "syft-json";
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

    /// The names that the format has a code for; the first has the code 1.
    pub fn go_names() -> impl Iterator<Item = &'static str> {
        ARCHES.iter().map(|(name, _)| *name)
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
        for code in -1..10 {
            assert_eq!(FsType::from_code(code).code(), code);
            assert_eq!(PartType::from_code(code).code(), code);
            assert_eq!(HashType::from_code(code).code(), code);
            assert_eq!(MessageFormat::from_code(code).code(), code);
            assert_eq!(SbomFormat::from_code(code).code(), code);
        }
        for code in [0, 0x100, 0x200, 0x300] {
            assert_eq!(MessageType::from_code(code).code(), code);
        }
        assert_eq!(Arch::from_go_name("arm64").go_name(), "arm64");
        assert_eq!(Arch::from_go_name("vax"), Arch::UNKNOWN);
    }

    #[test]
    fn short_names_lead_back() {
        for known in DataType::KNOWN {
            assert_eq!(DataType::from_short(known.short()), Some(*known));
        }
        assert_eq!(SbomFormat::from_short("spdx-yaml"), Some(SbomFormat::SpdxYaml));
        assert_eq!(DataType::from_short("unknown"), None);
        assert_eq!(DataType::Unknown(7).short(), "unknown");
    }
}
