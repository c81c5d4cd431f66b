//! Variables in values: `${NAME}`, `${NAME:-DEFAULT}`, and `$${NAME}` for the text `${NAME}`.

use std::path::Path;

use crate::error::EdfError;

/// Bytes of a value, variables replaced: no longer than an argument may be (execve(2)).
pub(crate) const MAX_VALUE: usize = 128 * 1024;

/// Where a value stands, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) file: &'a Path,
    pub(crate) key: &'a str,
}

/// Expands the variables in `text`. What they hold is not expanded again.
pub(crate) fn expand(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    origin: Origin<'_>,
) -> Result<String, EdfError> {
    let bad = || EdfError::BadExpansion {
        file: origin.file.to_owned(),
        key: origin.key.to_owned(),
        text: text.to_owned(),
    };
    let too_long =
        || EdfError::TooLong { file: origin.file.to_owned(), key: origin.key.to_owned(), limit: MAX_VALUE };
    if text.len() > MAX_VALUE {
        return Err(too_long());
    }
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("${") {
        let (before, found) = rest.split_at(place);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &found[2..];
            continue;
        }
        expanded.push_str(before);
        let (inner, after) = found[2..].split_once('}').ok_or_else(bad)?;
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        if !is_name(name) || default.is_some_and(|default| default.contains("${")) {
            return Err(bad());
        }
        // As in a shell, `:-` counts for an empty variable as well.
        let value = variable(name).filter(|value| default.is_none() || !value.is_empty());
        let value = value.or_else(|| default.map(str::to_owned)).ok_or_else(|| EdfError::Undefined {
            file: origin.file.to_owned(),
            key: origin.key.to_owned(),
            variable: name.to_owned(),
        })?;
        expanded.push_str(&value);
        if expanded.len() > MAX_VALUE {
            return Err(too_long());
        }
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Tells whether a shell could have a variable of this name.
pub(crate) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_once() {
        let variable = |name: &str| match name {
            "A" => Some("x".to_owned()),
            "TWICE" => Some("${A}".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let origin = Origin { file: Path::new("e.toml"), key: "image" };
        let expanded = |text: &str| expand(text, &variable, origin);
        for (text, wanted) in [
            ("plain $A $", "plain $A $"),
            ("${A}/${A}", "x/x"),
            ("${TWICE}", "${A}"),
            ("${NONE:-d}${NONE:-}", "d"),
            ("[${EMPTY}${EMPTY:-e}${A:-e}]", "[ex]"),
            ("$${A} $$${A}", "${A} $${A}"),
            ("${NONE:-a:-b}", "a:-b"),
        ] {
            assert_eq!(expanded(text).unwrap(), wanted, "{text}");
        }
        for text in ["${A", "${}", "${A B}", "${1}", "${A:-${A}}"] {
            assert!(matches!(expanded(text), Err(EdfError::BadExpansion { .. })), "{text}");
        }
        let long = "x".repeat(MAX_VALUE);
        assert!(expanded(&long).is_ok());
        assert!(matches!(expanded(&format!("{long}x")), Err(EdfError::TooLong { .. })));
        let much = "${A}".repeat(MAX_VALUE / 4);
        assert_eq!(expanded(&much).unwrap().len(), MAX_VALUE / 4);
        let undefined = expanded("${NONE}").unwrap_err().to_string();
        assert_eq!(undefined, "e.toml: image mentions ${NONE}, which is not set");
    }
}
