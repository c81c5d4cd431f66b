//! When to ask again: pauses, and what a registry says about them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The pause before attempt `attempt + 1`: doubled with each attempt up to `longest`, and shortened by up to a half
/// at random, so that the tasks of a job that were refused together do not come back together.
pub(crate) fn pause(first: Duration, longest: Duration, attempt: u32) -> Duration {
    let doubled = first.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    let whole = doubled.min(longest);
    // A hasher that is seeded anew is the only randomness of the standard library.
    let random = RandomState::new().build_hasher().finish();
    let part = u32::try_from(random % 1024).unwrap_or(0);
    whole / 2 + (whole / 2).saturating_mul(part) / 1024
}

/// Reads `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date, which is compared with the server's own `Date`
/// where there is one, since clocks differ.
pub(crate) fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time, too.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = http_date(value)?;
    let own_clock = || SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    let now = date.and_then(http_date).or_else(own_clock)?;
    Some(Duration::from_secs(until.saturating_sub(now)))
}

/// Reads a date of HTTP (RFC 9110 section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`); seconds since 1970. The two
/// obsolete forms are not read: nobody sends them.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.split(' ');
    let day = number(words.next()?, 1..=31)?;
    let month = words.next()?;
    let month = u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year = number(words.next()?, 1970..=9999)?;
    let mut clock = words.next()?.split(':');
    let (hour, minute) = (number(clock.next()?, 0..=23)?, number(clock.next()?, 0..=59)?);
    // A leap second is the sixtieth.
    let second = number(clock.next()?, 0..=60)?;
    if words.next()? != "GMT" || words.next().is_some() || clock.next().is_some() {
        return None;
    }
    // Years begin in March here, so that the day that comes and goes is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // Days from 1 March of year 0 to 1 January 1970.
    let days = (year * 365 + leap_days + (153 * month + 2) / 5 + day - 1).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        for (text, want) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(253_402_300_799)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1969 08:49:37 GMT", None),
            ("Sun, +6 Nov 1994 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(http_date(text), want, "{text}");
        }
    }

    #[test]
    fn servers_say_how_long_to_wait() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        for (value, date, want) in [
            ("120", None, Some(120)),
            (" 0 ", None, Some(0)),
            ("99999999999999999999999", None, Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", date, Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", date, Some(0)),
            // Against our own clock: long past.
            ("Sun, 06 Nov 1994 08:50:37 GMT", None, Some(0)),
            ("-1", None, None),
            ("soon", None, None),
            ("", None, None),
        ] {
            assert_eq!(retry_after(value, date).map(|wait| wait.as_secs()), want, "{value}");
        }
    }

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        for (attempt, whole) in [(1, 100), (2, 200), (4, 800), (5, 1000), (40, 1000), (u32::MAX, 1000)] {
            let found: Vec<u128> = (0..64).map(|_| pause(first, longest, attempt).as_millis()).collect();
            assert!(found.iter().all(|pause| (whole / 2..=whole).contains(pause)), "{attempt}: {found:?}");
            assert!(found.iter().any(|pause| *pause != found[0]), "{attempt}: {found:?}");
        }
        assert_eq!(pause(Duration::ZERO, longest, 3), Duration::ZERO);
    }
}
