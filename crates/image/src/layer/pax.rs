//! PAX extended headers: `length key=value\n` records that override or extend the next header.

/// Fields taken from one extended header.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_path: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    /// Whole seconds; fractions are cut (towards the past).
    pub(crate) mtime: Option<i64>,
    /// Extended attributes, sorted by name; a later record of the same name has replaced an earlier one.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: SparsePax,
}

/// The GNU sparse records of the three PAX dialects.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SparsePax {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// Offsets and lengths in turn (dialects 0.0 and 0.1).
    pub(crate) numbers: Vec<u64>,
}

/// Longest name and value of an extended attribute that Linux knows (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65_536;
/// Most records in one extended header.
const MAX_RECORDS: usize = 65_536;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// How libarchive (bsdtar) writes them as well: the name in URL encoding, the value in base64
/// (libarchive-formats(5), "Pax interchange format").
const LIBARCHIVE_PREFIX: &[u8] = b"LIBARCHIVE.xattr.";

/// Parses the body of an extended header; `None` if it is malformed.
pub(crate) fn parse(mut body: &[u8]) -> Option<Pax> {
    let mut pax = Pax::default();
    let mut n_records = 0;
    while !body.is_empty() {
        // Padding after the last record is tolerated.
        if body.iter().all(|b| *b == 0) {
            break;
        }
        n_records += 1;
        if n_records > MAX_RECORDS {
            return None;
        }
        let space = body.iter().take(20).position(|b| *b == b' ')?;
        let len = usize::try_from(decimal(&body[..space])?).ok()?;
        if len <= space + 1 || len > body.len() {
            return None;
        }
        let (record, rest) = body.split_at(len);
        body = rest;
        let record = record[space + 1..].strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        take_record(&mut pax, &record[..equals], &record[equals + 1..])?;
    }
    keep_last(&mut pax.xattrs);
    Some(pax)
}

/// Drops all but the last of each name. Once at the end: a header can have tens of thousands.
fn keep_last(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    xattrs.reverse();
    xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    xattrs.dedup_by(|later, kept| later.0 == kept.0);
}

fn take_record(pax: &mut Pax, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        // An empty value means "as if the record were not there".
        b"path" => pax.path = (!value.is_empty()).then(|| value.to_vec()),
        b"linkpath" => pax.link_path = (!value.is_empty()).then(|| value.to_vec()),
        b"size" => pax.size = Some(decimal(value)?),
        b"uid" => pax.uid = Some(decimal(value)?),
        b"gid" => pax.gid = Some(decimal(value)?),
        b"mtime" => pax.mtime = Some(seconds(value)?),
        b"GNU.sparse.major" => pax.sparse.major = Some(decimal(value)?),
        b"GNU.sparse.minor" => pax.sparse.minor = Some(decimal(value)?),
        b"GNU.sparse.name" => pax.sparse.name = Some(value.to_vec()),
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => pax.sparse.real_size = Some(decimal(value)?),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => pax.sparse.numbers.push(decimal(value)?),
        b"GNU.sparse.map" => {
            pax.sparse.numbers = value.split(|b| *b == b',').map(decimal).collect::<Option<_>>()?;
        }
        _ => {
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                add_xattr(pax, name.to_vec(), value.to_vec())?;
            } else if let Some(name) = key.strip_prefix(LIBARCHIVE_PREFIX) {
                add_xattr(pax, url_decoded(name)?, base64(value)?)?;
            }
        }
    }
    Some(())
}

/// Adds an attribute that Linux could have, or refuses it.
fn add_xattr(pax: &mut Pax, name: Vec<u8>, value: Vec<u8>) -> Option<()> {
    let fits = !name.is_empty() && name.len() <= MAX_XATTR_NAME && value.len() <= MAX_XATTR_VALUE;
    if !fits || name.contains(&0) {
        return None;
    }
    pax.xattrs.push((name, value));
    Some(())
}

/// Undoes `%XX`; a percent sign that starts none stands for itself, as in libarchive.
fn url_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) if digit(high).is_some() && digit(low).is_some() => {
                decoded.push(digit(high)? << 4 | digit(low)?);
                rest = after;
            }
            _ => decoded.push(*first),
        }
    }
    Some(decoded)
}

/// Decodes base64 (RFC 4648 §4) with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let n = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            // One digit is less than a byte.
            _ => return None,
        };
        // The bytes are at the upper end of 24 bits, whatever the number of digits.
        bits <<= 6 * (4 - group.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..=n]);
    }
    Some(decoded)
}

pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses `[-]digits[.digits]`, rounding towards the past.
fn seconds(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |b| *b == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = match parts.next() {
        Some(fraction) if !fraction.is_empty() => {
            fraction.iter().all(u8::is_ascii_digit).then(|| fraction.iter().any(|b| *b != b'0'))?
        }
        _ => false,
    };
    Some(if negative { -whole - i64::from(fraction) } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len += 1;
        }
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn reads_records() {
        let body = [
            record("path", b"a\xff/b"),
            record("mtime", b"12.9"),
            record("SCHILY.xattr.user.x", b"a\nb=c\0"),
            record("SCHILY.xattr.user.x", b"new"),
            record("comment", b""),
            record("uid", b"4000000000"),
        ]
        .concat();
        let pax = parse(&body).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\xff/b"[..]));
        assert_eq!((pax.mtime, pax.uid), (Some(12), Some(4_000_000_000)));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"new".to_vec())]);
    }

    #[test]
    fn reads_both_forms_of_attributes() {
        let body = [
            record("LIBARCHIVE.xattr.user.a%20b%3d", b"AQID"),
            record("LIBARCHIVE.xattr.user.one", b"/w"),
            record("LIBARCHIVE.xattr.user.padded", b"+w=="),
            record("LIBARCHIVE.xattr.user.two", b"aGk"),
            record("LIBARCHIVE.xattr.user.none", b""),
            record("LIBARCHIVE.xattr.user.100%", b"AA"),
            record("SCHILY.xattr.user.two", b"later"),
        ]
        .concat();
        let xattrs = parse(&body).unwrap().xattrs;
        let shown: Vec<(&str, &[u8])> = xattrs
            .iter()
            .map(|(name, value)| (std::str::from_utf8(name).unwrap(), value.as_slice()))
            .collect();
        let want: [(&str, &[u8]); 6] = [
            ("user.100%", b"\0"),
            ("user.a b=", b"\x01\x02\x03"),
            ("user.none", b""),
            ("user.one", b"\xff"),
            ("user.padded", b"\xfb"),
            ("user.two", b"later"),
        ];
        assert_eq!(shown, want);
        for (key, value) in [
            ("LIBARCHIVE.xattr.user.a", &b"A"[..]),
            ("LIBARCHIVE.xattr.user.a", b"A-BC"),
            ("LIBARCHIVE.xattr.user.a", b"AB=C"),
            ("LIBARCHIVE.xattr.user.%00", b"AA"),
            ("LIBARCHIVE.xattr.", b"AA"),
            ("SCHILY.xattr.", b"x"),
            (&format!("SCHILY.xattr.user.{}", "n".repeat(251)), b"x"),
            ("SCHILY.xattr.user.a", &[b'x'; 65_537]),
        ] {
            assert_eq!(parse(&record(key, value)), None, "{key}");
        }
        assert!(parse(&record("SCHILY.xattr.user.a", &[b'x'; 65_536])).is_some());
    }

    #[test]
    fn many_attributes_take_no_longer_than_few() {
        // The most that fit into an extended header of 1 MiB: with a search for each, half a minute.
        let n = 40_000;
        let body: Vec<u8> = (0..n).flat_map(|n| record(&format!("SCHILY.xattr.u.{n:x}"), b"")).collect();
        assert!(body.len() < 1 << 20);
        let began = std::time::Instant::now();
        assert_eq!(parse(&body).unwrap().xattrs.len(), n);
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    #[test]
    fn refuses_malformed_records() {
        let bodies: [&[u8]; 9] = [
            b"x",
            b"5 a=b",
            b"99 a=b\n",
            b"3 a\n",
            b"0 a=b\n",
            b"6 ab=c",
            b"-6 a=b\n",
            b"8 size=\n",
            b"10 size=-\n",
        ];
        for body in bodies {
            assert_eq!(parse(body), None, "{body:?}");
        }
    }

    #[test]
    fn rounds_times_towards_the_past() {
        for (text, want) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("-1.5", Some(-2)),
            ("1.0", Some(1)),
            ("-0.1", Some(-1)),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(seconds(text.as_bytes()), want, "{text}");
        }
    }
}
