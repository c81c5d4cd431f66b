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
    /// Extended attributes in the order written; a later record of the same name replaces.
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

/// Most records in one extended header.
const MAX_RECORDS: usize = 65_536;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

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
    Some(pax)
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
                if name.is_empty() || name.contains(&0) {
                    return None;
                }
                pax.xattrs.retain(|(n, _)| n != name);
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Some(())
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
