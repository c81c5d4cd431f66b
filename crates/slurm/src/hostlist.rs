//! Slurm's hostlist notation: `n[1-4,7]`, `a[01-10]b[1-2]`, `login,gpu[3-5]`.
//!
//! The number of names is bounded before any is made, so that a short expression with huge ranges
//! is refused instead of filling memory. Zero padding follows the first number of each range, as
//! in Slurm. Dimensions vary fastest at the right.

use crate::error::HostlistError;

/// Hosts accepted in one expression: twice the largest range Slurm itself expands (64 Ki).
pub const MAX_HOSTS: usize = 1 << 17;

/// Bytes accepted in one expression: the kernel's limit for one environment string.
pub(crate) const MAX_EXPRESSION: usize = 128 * 1024;

/// Ranges accepted in one name; Slurm's own limit of dimensions is far lower.
const MAX_DIMENSIONS: usize = 8;

/// Digits of a number that can still be counted up; longer ones are refused in a range.
const MAX_DIGITS: usize = 18;

/// Bytes of all names together, so that a long name times many hosts stays bounded.
const MAX_TOTAL_BYTES: usize = 32 << 20;

/// Expands an expression into host names, in order.
///
/// # Errors
/// Malformed brackets or ranges, characters no host name has, or more than [`MAX_HOSTS`] names.
pub fn expand(expression: &str) -> Result<Vec<String>, HostlistError> {
    if expression.len() > MAX_EXPRESSION {
        return Err(HostlistError::TooLong { length: expression.len(), limit: MAX_EXPRESSION });
    }
    let mut hosts = Vec::new();
    if expression.is_empty() {
        return Ok(hosts);
    }
    let mut budget = MAX_TOTAL_BYTES;
    for term in split_terms(expression)? {
        let parts = parse_term(term)?;
        expand_term(&parts, &mut hosts, &mut budget)?;
    }
    Ok(hosts)
}

/// Writes host names in the shortest notation that keeps their order.
///
/// Only the last number of a name is folded into a bracket, as Slurm does by default. Expanding the
/// result gives back the same names.
pub fn compress<S: AsRef<str>>(hosts: &[S]) -> String {
    let mut out = String::new();
    let mut i = 0;
    while i < hosts.len() {
        if !out.is_empty() {
            out.push(',');
        }
        let Some((prefix, _)) = split_number(hosts[i].as_ref()) else {
            out.push_str(hosts[i].as_ref());
            i += 1;
            continue;
        };
        let mut numbers = Vec::new();
        while let Some((same, digits)) = hosts.get(i).and_then(|host| split_number(host.as_ref())) {
            if same != prefix {
                break;
            }
            numbers.push(digits);
            i += 1;
        }
        out.push_str(prefix);
        if let [single] = numbers[..] {
            out.push_str(single);
        } else {
            out.push('[');
            out.push_str(&fold_numbers(&numbers));
            out.push(']');
        }
    }
    out
}

/// One piece of a term: fixed text, or a bracket with its alternatives.
enum Part<'a> {
    Text(&'a str),
    Ranges(Vec<Range>),
}

struct Range {
    first: u64,
    last: u64,
    width: usize,
}

fn split_terms(expression: &str) -> Result<Vec<&str>, HostlistError> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut open = false;
    for (offset, byte) in expression.bytes().enumerate() {
        match byte {
            b'[' if open => return Err(HostlistError::Bracket { offset }),
            b'[' => open = true,
            b']' if !open => return Err(HostlistError::Bracket { offset }),
            b']' => open = false,
            b',' if !open => {
                terms.push(&expression[start..offset]);
                start = offset + 1;
            }
            _ => {}
        }
    }
    if open {
        return Err(HostlistError::Bracket { offset: expression.len() });
    }
    terms.push(&expression[start..]);
    Ok(terms)
}

fn parse_term(term: &str) -> Result<Vec<Part<'_>>, HostlistError> {
    if term.is_empty() {
        return Err(HostlistError::EmptyName);
    }
    if let Some(character) = term.chars().find(|c| c.is_whitespace() || c.is_control() || *c == '/') {
        return Err(HostlistError::BadCharacter { character });
    }
    let mut parts = Vec::new();
    let mut rest = term;
    while let Some((text, after)) = rest.split_once('[') {
        // split_terms saw balanced brackets, so the closing one is here.
        let (inside, tail) = after.split_once(']').ok_or(HostlistError::Bracket { offset: term.len() })?;
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        let ranges = inside.split(',').map(parse_range).collect::<Result<_, _>>()?;
        parts.push(Part::Ranges(ranges));
        if parts.iter().filter(|part| matches!(part, Part::Ranges(_))).count() > MAX_DIMENSIONS {
            return Err(HostlistError::TooMany { limit: MAX_HOSTS });
        }
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

fn parse_range(text: &str) -> Result<Range, HostlistError> {
    let bad = || HostlistError::BadRange { range: text.chars().take(40).collect() };
    let number = |digits: &str| -> Option<u64> {
        (!digits.is_empty() && digits.len() <= MAX_DIGITS && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| digits.parse().ok())
            .flatten()
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = Range {
        first: number(first).ok_or_else(bad)?,
        last: number(last).ok_or_else(bad)?,
        width: first.len(),
    };
    if range.first > range.last { Err(bad()) } else { Ok(range) }
}

fn expand_term(parts: &[Part<'_>], hosts: &mut Vec<String>, budget: &mut usize) -> Result<(), HostlistError> {
    let too_many = || HostlistError::TooMany { limit: MAX_HOSTS };
    let mut count = 1u64;
    for part in parts {
        if let Part::Ranges(ranges) = part {
            let here =
                ranges.iter().try_fold(0u64, |sum, range| sum.checked_add(range.last - range.first + 1));
            count = here.and_then(|here| count.checked_mul(here)).ok_or_else(too_many)?;
        }
    }
    let count = usize::try_from(count).map_err(|_| too_many())?;
    if count > MAX_HOSTS - hosts.len().min(MAX_HOSTS) {
        return Err(too_many());
    }

    // Counted at the longest a name can get, before the first one is made.
    let longest: usize = parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.len(),
            Part::Ranges(_) => MAX_DIGITS,
        })
        .sum();
    *budget = count.checked_mul(longest).and_then(|bytes| budget.checked_sub(bytes)).ok_or_else(too_many)?;

    let mut names = vec![String::new()];
    for part in parts {
        match part {
            Part::Text(text) => names.iter_mut().for_each(|name| name.push_str(text)),
            Part::Ranges(ranges) => {
                let mut longer = Vec::new();
                for name in &names {
                    for range in ranges {
                        for n in range.first..=range.last {
                            longer.push(format!("{name}{n:0width$}", width = range.width));
                        }
                    }
                }
                names = longer;
            }
        }
    }
    hosts.append(&mut names);
    Ok(())
}

/// Splits off the trailing digits of a name, if there are some that can be counted.
fn split_number(host: &str) -> Option<(&str, &str)> {
    let digits = host.bytes().rev().take_while(u8::is_ascii_digit).count();
    (1..=MAX_DIGITS).contains(&digits).then(|| host.split_at(host.len() - digits))
}

/// Writes numbers as `1-4,7`, joining a number to the one before if counting up with the first
/// one's width would print it.
fn fold_numbers(numbers: &[&str]) -> String {
    let value = |digits: &str| digits.parse::<u64>().unwrap_or(u64::MAX);
    let mut out = String::new();
    let mut i = 0;
    while i < numbers.len() {
        let first = numbers[i];
        let mut last = i;
        while let Some(next) = numbers.get(last + 1) {
            let follows = value(numbers[last]) + 1;
            if **next != *format!("{follows:0width$}", width = first.len()) {
                break;
            }
            last += 1;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(first);
        if last > i {
            out.push('-');
            out.push_str(numbers[last]);
        }
        i = last + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_expand() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("n1", &["n1"]),
            ("n[1-4,7]", &["n1", "n2", "n3", "n4", "n7"]),
            ("n[08-11]", &["n08", "n09", "n10", "n11"]),
            ("n[8-11]", &["n8", "n9", "n10", "n11"]),
            ("a[01-02]b[1-2]", &["a01b1", "a01b2", "a02b1", "a02b2"]),
            ("login,gpu[3-5]-ib", &["login", "gpu3-ib", "gpu4-ib", "gpu5-ib"]),
            ("[1-2]", &["1", "2"]),
            ("r1-n[2],x.y", &["r1-n2", "x.y"]),
        ];
        for (text, want) in table {
            assert_eq!(expand(text).expect(text), *want, "{text}");
        }
    }

    #[test]
    fn malformed_expressions_are_refused() {
        for text in [
            ",",
            "n1,",
            "n[1",
            "n1]",
            "n[[1]]",
            "n[]",
            "n[1-]",
            "n[-1]",
            "n[2-1]",
            "n[a-b]",
            "n[1,]",
            "a b",
            "a/b",
            "a\nb",
            "n[1-2-3]",
            "n[+1-2]",
            "n[1-99999999999999999999]",
        ] {
            assert!(expand(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn size_is_bounded_before_it_is_spent() {
        for text in ["n[0-999999999]", "n[0-999][0-999]", "n[0-99][0-99][0-99]", "n[1-131072],m"] {
            assert_eq!(expand(text), Err(HostlistError::TooMany { limit: MAX_HOSTS }), "{text}");
        }
        assert_eq!(expand("n[1-131072]").expect("exactly the limit").len(), MAX_HOSTS);
        let many = "[1-2]".repeat(9);
        assert_eq!(expand(&many), Err(HostlistError::TooMany { limit: MAX_HOSTS }));
        let long = format!("{}[1-131072]", "x".repeat(100_000));
        assert_eq!(expand(&long), Err(HostlistError::TooMany { limit: MAX_HOSTS }));
        assert!(matches!(expand(&"x".repeat(MAX_EXPRESSION + 1)), Err(HostlistError::TooLong { .. })));
    }

    #[test]
    fn names_compress() {
        let table: &[(&[&str], &str)] = &[
            (&[], ""),
            (&["n1"], "n1"),
            (&["n1", "n2", "n3", "n7"], "n[1-3,7]"),
            (&["n08", "n09", "n10"], "n[08-10]"),
            (&["n8", "n9", "n10"], "n[8-10]"),
            (&["n09", "n9"], "n[09,9]"),
            (&["n3", "n1", "n2"], "n[3,1-2]"),
            (&["login", "n1", "n2", "m1"], "login,n[1-2],m1"),
            (&["n99999999999999999999", "n1"], "n99999999999999999999,n1"),
        ];
        for (hosts, want) in table {
            assert_eq!(compress(hosts), *want);
            assert_eq!(expand(want).expect("own output"), *hosts, "{want}");
        }
    }

    #[test]
    fn compressing_loses_nothing() {
        // A small deterministic walk over awkward names: same numbers, mixed widths, repeats.
        let mut seed = 12345u64;
        for _ in 0..500 {
            let hosts: Vec<String> = (0..12)
                .map(|_| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let n = (seed >> 40) % 13;
                    match (seed >> 33) % 4 {
                        0 => format!("n{n}"),
                        1 => format!("n{n:02}"),
                        2 => format!("x{n}-ib"),
                        _ => format!("m{n:03}"),
                    }
                })
                .collect();
            assert_eq!(expand(&compress(&hosts)).expect("own output"), hosts);
        }
    }
}
