//! References as anybody may write them. Shared by the tests of this crate and the fuzz target.
//!
//! Invariant: whatever the text is, parsing returns, with a result or an error. An accepted reference is written in a
//! form that means the same again, and no part of it holds what would end that part in a URL or a file name.

use situla_oci::Reference;

/// Parses a text in both spellings; tells whether it is a reference in one of them.
pub(crate) fn reference(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let docker = Reference::parse(text);
    if let Ok(reference) = &docker {
        check(reference);
    }
    let enroot = Reference::parse_enroot(text);
    if let Ok(parsed) = &enroot {
        check(&parsed.reference);
        if let Some(user) = &parsed.user {
            assert!(!user.is_empty() && !user.chars().any(char::is_control), "{user:?}");
        }
    }
    docker.is_ok() || enroot.is_ok()
}

fn check(reference: &Reference) {
    let written = reference.to_string();
    let again = Reference::parse(&written);
    assert!(again.as_ref().is_ok_and(|again| again == reference), "{written}: {again:?}");
    let plain = |text: &str, also: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
        assert!(!text.is_empty() && text.chars().all(allowed), "{text:?} in {written}");
    };
    plain(reference.registry().as_str(), ".-:[]_");
    plain(reference.repository().as_str(), "._-/");
    assert!(reference.repository().as_str().split('/').all(|part| !matches!(part, "" | "." | "..")));
    if let Some(tag) = reference.tag() {
        plain(tag.as_str(), "._-");
    }
    plain(&reference.selector(), "._-:");
}
