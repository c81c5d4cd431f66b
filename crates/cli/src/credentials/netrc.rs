//! Files in the form of netrc: `~/.netrc`, and enroot's `.credentials`.

use situla_image::Secret;

/// An entry with a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) machine: String,
    pub(super) login: String,
    pub(super) password: Secret,
}

/// Most entries that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// Reads all complete entries, in their order. `default` is left out: a password for any host that asks would be
/// told to every registry.
pub(super) fn parse(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut words = Words { rest: text };
    let mut open = Open::default();
    while let Some(word) = words.next() {
        if entries.len() >= MAX_ENTRIES {
            return entries;
        }
        match word.as_str() {
            "machine" => {
                entries.extend(std::mem::take(&mut open).finish());
                open.machine = words.next();
            }
            "default" => entries.extend(std::mem::take(&mut open).finish()),
            "login" => open.login = words.next(),
            "password" => open.password = words.next(),
            "account" => drop(words.next()),
            "macdef" => words.skip_macro(),
            word if word.starts_with('#') => words.skip_line(),
            // What nobody knows is skipped, as ftp and curl do.
            _ => {}
        }
    }
    entries.extend(open.finish());
    entries
}

#[derive(Default)]
struct Open {
    machine: Option<String>,
    login: Option<String>,
    password: Option<String>,
}

impl Open {
    fn finish(self) -> Option<Entry> {
        let (machine, login, password) = (self.machine?, self.login?, self.password?);
        Some(Entry { machine: machine.to_ascii_lowercase(), login, password: Secret::new(password) })
    }
}

/// Words between white space; with quotes around one, or in it after a backslash.
struct Words<'t> {
    rest: &'t str,
}

impl Words<'_> {
    fn next(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let quoted = self.rest.strip_prefix('"');
        let text = quoted.unwrap_or(self.rest);
        let mut word = String::new();
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' if quoted.is_some() => {
                    self.rest = &text[at + 1..];
                    return Some(word);
                }
                '\\' if quoted.is_some() => word.extend(chars.next().map(|(_, escaped)| match escaped {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                })),
                c if c.is_whitespace() && quoted.is_none() => {
                    self.rest = &text[at..];
                    return Some(word);
                }
                c => word.push(c),
            }
        }
        self.rest = "";
        (!word.is_empty()).then_some(word)
    }

    fn skip_line(&mut self) {
        self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
    }

    /// A macro ends with an empty line.
    fn skip_macro(&mut self) {
        self.rest = self.rest.split_once("\n\n").map_or("", |(_, rest)| rest);
    }
}

/// Reads the lines of enroot's file. It is a netrc file, but that a password that begins with `$` takes the rest of
/// its line and is what the shell makes of it.
pub(super) fn parse_enroot(text: &str) -> Vec<EnrootEntry> {
    let mut entries = Vec::new();
    let mut plain = String::new();
    for line in text.lines() {
        match commanded(line) {
            Some(entry) => entries.push(entry),
            None => {
                plain.push_str(line);
                plain.push('\n');
            }
        }
    }
    entries.truncate(MAX_ENTRIES);
    entries.extend(parse(&plain).into_iter().map(|Entry { machine, login, password }| EnrootEntry {
        machine,
        login,
        password: Password::Plain(password),
    }));
    entries
}

/// An entry of enroot's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EnrootEntry {
    pub(super) machine: String,
    pub(super) login: String,
    pub(super) password: Password,
}

/// A password, or how to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Password {
    Plain(Secret),
    /// For the shell: `$NAME`, `${NAME}` or `$(COMMAND)`.
    Shell(String),
}

fn commanded(line: &str) -> Option<EnrootEntry> {
    let mut rest = line;
    let mut take = || {
        rest = rest.trim_start();
        let (word, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        rest = after;
        word
    };
    let [key, machine, login_key, login, password_key] = std::array::from_fn(|_| take());
    let password = rest.trim();
    let is_entry = (key, login_key, password_key) == ("machine", "login", "password");
    (is_entry && password.starts_with('$')).then(|| EnrootEntry {
        machine: machine.to_ascii_lowercase(),
        login: login.to_owned(),
        password: Password::Shell(password.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(machine: &str, login: &str, password: &str) -> Entry {
        Entry { machine: machine.to_owned(), login: login.to_owned(), password: Secret::new(password) }
    }

    #[test]
    fn entries_are_read_whatever_the_lines() {
        for (text, want) in [
            ("machine a.example login me password p", vec![entry("a.example", "me", "p")]),
            ("machine A.Example\n\tpassword p\n\tlogin me\n", vec![entry("a.example", "me", "p")]),
            (
                "machine a login b account c password d machine e login f password g",
                vec![entry("a", "b", "d"), entry("e", "f", "g")],
            ),
            ("machine a login b password \"c d\\\"\\\\\" ", vec![entry("a", "b", "c d\"\\")]),
            ("# machine x login y password z\nmachine a login b password c#d", vec![entry("a", "b", "c#d")]),
            (
                "machine a login b password c\nmacdef init\nmachine x login y password z\n\nmachine d login e password f",
                vec![entry("a", "b", "c"), entry("d", "e", "f")],
            ),
            (
                "default login anonymous password me@here\nmachine a login b password c",
                vec![entry("a", "b", "c")],
            ),
            ("machine a login b password c default login x password y", vec![entry("a", "b", "c")]),
            ("machine a login b", vec![]),
            ("machine a password b", vec![]),
            ("machine", vec![]),
            ("login b password c", vec![]),
            ("\"", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
        let many = "machine a login b password c\n".repeat(MAX_ENTRIES + 5);
        assert!(parse(&many).len() <= MAX_ENTRIES + 1);
    }

    #[test]
    fn enroots_passwords_may_be_for_the_shell() {
        let text = "# first\nmachine a.example login $oauthtoken password secret\n\
                    machine b.example login me password $(get token --for b)\n\
                    machine C.example login me password $TOKEN\n\
                    machine d.example login me password \"$TOKEN\"\n";
        let shell = |text: &str| Password::Shell(text.to_owned());
        let plain = |text: &str| Password::Plain(Secret::new(text));
        let found: Vec<_> = parse_enroot(text)
            .into_iter()
            .map(|entry| (entry.machine, entry.login, entry.password))
            .collect();
        let want = [
            ("b.example", "me", shell("$(get token --for b)")),
            ("c.example", "me", shell("$TOKEN")),
            ("a.example", "$oauthtoken", plain("secret")),
            ("d.example", "me", plain("$TOKEN")),
        ];
        assert_eq!(
            found,
            want.map(|(machine, login, password)| (machine.to_owned(), login.to_owned(), password))
        );
    }
}
