//! The 512-byte tar header block: fields, numbers, checksum.

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;

/// One header block.
#[derive(Clone)]
pub(crate) struct Header {
    block: [u8; BLOCK],
}

/// Which dialect a header is written in; it decides what the last fields mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// No magic: only the old fields.
    V7,
    /// POSIX: the name may have a prefix.
    Ustar,
    /// GNU: no prefix, but times and a sparse map.
    Gnu,
}

impl Header {
    pub(crate) fn new(block: [u8; BLOCK]) -> Self {
        Self { block }
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.block.iter().all(|b| *b == 0)
    }

    /// Compares the checksum. Some old writers added signed bytes, so both sums are accepted.
    pub(crate) fn checksum_is_right(&self) -> bool {
        let Some(stored) = number(&self.block[148..156]) else { return false };
        let mut unsigned: i64 = 0;
        let mut signed: i64 = 0;
        for (i, byte) in self.block.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        stored == unsigned || stored == signed
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match &self.block[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// Returns the name with its ustar prefix.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => until_nul(&self.block[345..500]),
            _ => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link_name(&self) -> Vec<u8> {
        until_nul(&self.block[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Option<i64> {
        number(&self.block[100..108])
    }

    pub(crate) fn uid(&self) -> Option<i64> {
        number(&self.block[108..116])
    }

    pub(crate) fn gid(&self) -> Option<i64> {
        number(&self.block[116..124])
    }

    pub(crate) fn size(&self) -> Option<i64> {
        number(&self.block[124..136])
    }

    pub(crate) fn mtime(&self) -> Option<i64> {
        number(&self.block[136..148])
    }

    /// Returns the device numbers; V7 headers have none.
    pub(crate) fn device(&self) -> Option<(i64, i64)> {
        match self.dialect() {
            Dialect::V7 => None,
            _ => Some((number(&self.block[329..337])?, number(&self.block[337..345])?)),
        }
    }

    /// Returns the GNU sparse part: four (offset, length) pairs and "more follow".
    pub(crate) fn gnu_sparse(&self) -> Option<(Vec<(i64, i64)>, bool)> {
        Some((sparse_pairs(&self.block[386..482])?, self.block[482] != 0))
    }

    /// Returns the size of a GNU sparse file with its holes.
    pub(crate) fn gnu_real_size(&self) -> Option<i64> {
        number(&self.block[483..495])
    }
}

/// Parses a block of GNU sparse continuation: 21 pairs and "more follow".
pub(crate) fn gnu_sparse_continuation(block: &[u8; BLOCK]) -> Option<(Vec<(i64, i64)>, bool)> {
    Some((sparse_pairs(&block[..504])?, block[504] != 0))
}

fn sparse_pairs(bytes: &[u8]) -> Option<Vec<(i64, i64)>> {
    bytes
        .chunks_exact(24)
        .take_while(|pair| pair[0] != 0)
        .map(|pair| Some((number(&pair[..12])?, number(&pair[12..])?)))
        .collect()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Parses a numeric field: octal text padded with spaces and NULs, or base 256 if the top bit is set.
/// An empty field is zero. `None` for anything else, or what does not fit.
fn number(field: &[u8]) -> Option<i64> {
    match field[0] {
        first if first & 0x80 != 0 => {
            // Two's complement with the top bit as marker; bit 6 of the first byte is the sign.
            let start = if first & 0x40 != 0 { -1i64 } else { 0 };
            let first = i64::from(first & 0x3f) | (start << 6);
            field[1..].iter().try_fold(first, |acc, b| acc.checked_mul(256)?.checked_add(i64::from(*b)))
        }
        _ => {
            let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
            if text.is_empty() {
                return Some(0);
            }
            if !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
                return None;
            }
            i64::from_str_radix(text, 8).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"+000644\0", None),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff; 8], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
            (&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
        ];
        for (field, want) in cases {
            assert_eq!(number(field), *want, "{field:?}");
        }
    }
}
