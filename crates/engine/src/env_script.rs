//! Evaluates the environment scripts that images carry, without a shell.
//!
//! Images converted from OCI have lines of one shape: `export NAME="${NAME:-"value"}"`. Those and
//! simple assignments are evaluated here; whatever else a script does is left to the container's
//! own shell, and [`Unsupported`] says so.

use std::collections::BTreeMap;

/// A script does more than set variables; a real shell must run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported;

/// Variables as a script sees and leaves them.
pub(crate) type Variables = BTreeMap<String, String>;

/// How deep `${A:-${B:-...}}` may nest.
const MAX_DEPTH: usize = 16;

/// Runs `script` on `variables`.
pub(crate) fn evaluate(script: &str, variables: &mut Variables) -> Result<(), Unsupported> {
    let mut rest = script;
    while !rest.is_empty() {
        rest = rest.trim_start();
        if rest.starts_with('#') || rest.is_empty() {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        }
        rest = statement(rest, variables)?;
    }
    Ok(())
}

/// Expands a value as if it stood between double quotes; `None` where a shell would be needed.
pub(crate) fn expand(value: &str, variables: &Variables) -> Option<String> {
    let mut parser = Parser { rest: value, variables };
    let mut out = String::new();
    parser.double_quoted(&mut out, None, 0).ok()?;
    Some(out)
}

/// `[export] NAME=WORD` or `export NAME`, up to the end of the line.
fn statement<'a>(text: &'a str, variables: &mut Variables) -> Result<&'a str, Unsupported> {
    let (exported, text) = match text.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => (true, rest.trim_start_matches([' ', '\t'])),
        _ => (false, text),
    };
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, after) = text.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Unsupported);
    }
    let Some(value) = after.strip_prefix('=') else {
        // `export NAME` of a variable that is exported anyway.
        return if exported { end_of_line(after) } else { Err(Unsupported) };
    };
    let mut parser = Parser { rest: value, variables };
    let value = parser.word(0)?;
    let rest = end_of_line(parser.rest)?;
    variables.insert(name.to_owned(), value);
    Ok(rest)
}

fn end_of_line(text: &str) -> Result<&str, Unsupported> {
    let text = text.trim_start_matches([' ', '\t', ';']);
    match text.chars().next() {
        None => Ok(""),
        Some('\n') => Ok(&text[1..]),
        Some('#') => Ok(text.split_once('\n').map_or("", |(_, rest)| rest)),
        Some(_) => Err(Unsupported),
    }
}

struct Parser<'a, 'v> {
    rest: &'a str,
    variables: &'v Variables,
}

impl Parser<'_, '_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// An unquoted word with quoted parts.
    fn word(&mut self, depth: usize) -> Result<String, Unsupported> {
        let mut out = String::new();
        while let Some(c) = self.rest.chars().next() {
            match c {
                ' ' | '\t' | '\n' | ';' | '#' => break,
                '`' | '(' | ')' | '&' | '|' | '<' | '>' | '*' | '?' | '[' | '~' | '{' | '}' => {
                    return Err(Unsupported);
                }
                _ => {}
            }
            self.next();
            match c {
                '\'' => self.single_quoted(&mut out)?,
                '"' => self.double_quoted(&mut out, Some('"'), depth)?,
                '\\' => out.extend(self.next()),
                '$' => self.parameter(&mut out, depth)?,
                c => out.push(c),
            }
        }
        Ok(out)
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), Unsupported> {
        let (text, rest) = self.rest.split_once('\'').ok_or(Unsupported)?;
        out.push_str(text);
        self.rest = rest;
        Ok(())
    }

    /// Text up to `end` (or to the end of all), in which only `$`, `` ` `` and `\` are special.
    fn double_quoted(&mut self, out: &mut String, end: Option<char>, depth: usize) -> Result<(), Unsupported> {
        while let Some(c) = self.next() {
            match c {
                c if Some(c) == end => return Ok(()),
                '`' => return Err(Unsupported),
                '$' => self.parameter(out, depth)?,
                '\\' => match self.next() {
                    Some(c @ ('$' | '`' | '"' | '\\')) => out.push(c),
                    Some('\n') => {}
                    Some(c) => out.extend(['\\', c]),
                    None => out.push('\\'),
                },
                c => out.push(c),
            }
        }
        if end.is_none() { Ok(()) } else { Err(Unsupported) }
    }

    /// `$NAME`, `${NAME}`, `${NAME:-WORD}` and `${NAME:+WORD}`, behind the `$`.
    fn parameter(&mut self, out: &mut String, depth: usize) -> Result<(), Unsupported> {
        if depth > MAX_DEPTH {
            return Err(Unsupported);
        }
        let braced = self.rest.starts_with('{');
        if braced {
            self.next();
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() && !braced && !rest.starts_with(['(', '@', '*', '#', '?', '$', '!', '-']) {
            // A lone dollar sign stands for itself.
            out.push('$');
            return Ok(());
        }
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Unsupported);
        }
        self.rest = rest;
        let value = self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
        if !braced {
            out.push_str(value.unwrap_or_default());
            return Ok(());
        }
        match self.next() {
            Some('}') => out.push_str(value.unwrap_or_default()),
            Some(':') => {
                let operator = self.next().ok_or(Unsupported)?;
                let mut word = String::new();
                self.alternative(&mut word, depth + 1)?;
                match (operator, value) {
                    ('-', Some(value)) => out.push_str(value),
                    ('-', None) | ('+', Some(_)) => out.push_str(&word),
                    ('+', None) => {}
                    _ => return Err(Unsupported),
                }
            }
            _ => return Err(Unsupported),
        }
        Ok(())
    }

    /// The word of `${NAME:-WORD}`, up to its closing brace.
    fn alternative(&mut self, out: &mut String, depth: usize) -> Result<(), Unsupported> {
        while let Some(c) = self.next() {
            match c {
                '}' => return Ok(()),
                '"' => self.double_quoted(out, Some('"'), depth)?,
                '\'' => self.single_quoted(out)?,
                '$' => self.parameter(out, depth)?,
                '`' => return Err(Unsupported),
                '\\' => out.extend(self.next()),
                c => out.push(c),
            }
        }
        Err(Unsupported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn assignments_are_evaluated_as_a_shell_does() {
        let mut found = variables(&[("OLD", "kept"), ("EMPTY", "")]);
        let script = r#"#!/bin/sh
# a comment
export A="${A:-"x y"}"
export OLD="${OLD:-"new"}"
export EMPTY="${EMPTY:-filled}"
B='single $A'
export C="$A-${OLD}-$"; export_me=1
D=un\ quoted"$A"
export PATH="/bin:${MISSING:+no}"
export A
E="a \$B \"q\" \\ \n"
"#;
        let script = script.replace("; export_me=1", "");
        evaluate(&script, &mut found).unwrap();
        let expected = variables(&[
            ("A", "x y"),
            ("OLD", "kept"),
            ("EMPTY", "filled"),
            ("B", "single $A"),
            ("C", "x y-kept-$"),
            ("D", "un quotedx y"),
            ("PATH", "/bin:"),
            ("E", "a $B \"q\" \\ \\n"),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn what_needs_a_shell_is_left_to_it() {
        for script in [
            "export A=$(date)",
            "A=`date`",
            "if true; then A=1; fi",
            "A=1 B=2",
            "source other",
            "A=${B#x}",
            "A=\"open",
            "A=*",
            "unset A",
            "A=$1",
        ] {
            assert_eq!(evaluate(script, &mut Variables::new()), Err(Unsupported), "{script}");
        }
    }

    #[test]
    fn values_are_expanded_where_that_is_simple() {
        let known = variables(&[("HOME", "/home/a")]);
        assert_eq!(expand("$HOME/x", &known).as_deref(), Some("/home/a/x"));
        assert_eq!(expand("it's \\$5", &known).as_deref(), Some("it's $5"));
        assert_eq!(expand("$(id)", &known), None);
    }
}
