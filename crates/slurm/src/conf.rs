//! What slurm.conf(5) tells, as Slurm's own reader understands it.
//!
//! The rules were found by asking slurmctld of 22.05 what it made of each line; the manual page is silent about most of
//! them. A file that Slurm refuses is read as far as it makes sense: to refuse it is for Slurm to do.

/// Bytes of a configuration that are worth reading; a site's own is a few hundred kilobytes at the most.
pub const MAX_CONF: u64 = 4 * 1024 * 1024;

/// Files that one includes, all in all; sites have a dozen. They may include each other.
const MAX_INCLUDES: usize = 64;

/// The settings of a configuration that stand alone in their lines. Those of nodes and partitions, of which there are
/// many in a line, are not among them but for the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlurmConf(Vec<(String, String)>);

impl SlurmConf {
    /// Understands the text of a file. `include` gives the text of one that is included, by the name that the line has;
    /// a relative one means a file beside `slurm.conf`, wherever the line stands.
    pub fn parse(text: &str, mut include: impl FnMut(&str) -> Option<String>) -> Self {
        let mut conf = SlurmConf::default();
        // What is included stands in the place of the line: the last of these lines is the next.
        let mut waiting: Vec<String> = lines(text);
        waiting.reverse();
        let mut n_included = 0;
        while let Some(line) = waiting.pop() {
            if let Some(name) = included(&line) {
                n_included += 1;
                if n_included <= MAX_INCLUDES {
                    let name = name.replace("%c", conf.cluster_name().as_deref().unwrap_or("%c"));
                    let more = include(&name).map(|text| lines(&text)).unwrap_or_default();
                    waiting.extend(more.into_iter().rev());
                }
            } else if let Some((key, value)) = pair(&line) {
                conf.0.push((key.to_ascii_lowercase(), value.to_owned()));
            }
        }
        conf
    }

    /// The value of a setting, whose name is the same in capitals and small letters. The last one counts.
    pub fn value(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().rfind(|(name, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The name of the cluster, as Slurm itself says it: in small letters.
    pub fn cluster_name(&self) -> Option<String> {
        self.value("ClusterName").map(str::to_ascii_lowercase)
    }
}

/// The lines, without comments and with those joined that a `\` at the end continues. A `\` before another character stands
/// for that character, which then begins no comment.
fn lines(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut line = String::new();
    for part in text.lines() {
        let mut characters = part.chars();
        let mut goes_on = false;
        while let Some(character) = characters.next() {
            match character {
                '#' => break,
                '\\' => match characters.next() {
                    Some(escaped) => line.push(escaped),
                    None => goes_on = true,
                },
                other => line.push(other),
            }
        }
        if !goes_on {
            found.push(std::mem::take(&mut line));
        }
    }
    if !line.is_empty() {
        found.push(line);
    }
    found
}

/// The file that a line includes. Slurm knows the word at the very beginning of a line only.
fn included(line: &str) -> Option<&str> {
    const WORD: &str = "include";
    let (word, rest) = line.split_at_checked(WORD.len())?;
    let is_include = word.eq_ignore_ascii_case(WORD) && rest.starts_with(char::is_whitespace);
    is_include.then(|| rest.split_whitespace().next()).flatten()
}

/// The first name of a line, and its value: what is between quotes, or else a word.
fn pair(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    // Slurm has also +=, -=, *= and /=, which for these settings are the same.
    let key = key.strip_suffix(['+', '-', '*', '/']).unwrap_or(key).trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if key.is_empty() || !key.chars().all(is_name) {
        return None;
    }
    let value = value.trim_start();
    let quoted = value.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let value = match quoted {
        Some((inside, behind)) if behind.is_empty() || behind.starts_with(char::is_whitespace) => inside,
        _ => value.split_whitespace().next().unwrap_or_default(),
    };
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(text: &str) -> SlurmConf {
        SlurmConf::parse(text, |_| None)
    }

    /// Each line was given to slurmctld 22.05.8; the value is what `scontrol show config` said then.
    #[test]
    fn a_value_is_what_slurm_makes_of_it() {
        for (text, value) in [
            ("MailDomain=a", Some("a")),
            ("maildomain=a", Some("a")),
            ("\tMailDomain\t=\ta\t", Some("a")),
            ("MailDomain = a", Some("a")),
            ("MailDomain=\"a b\"", Some("a b")),
            ("MailDomain=a\"b\"", Some("a\"b\"")),
            ("MailDomain=\"a\"b", Some("\"a\"b")),
            ("MailDomain=\"\"", None),
            ("MailDomain=a=b", Some("a=b")),
            ("MailDomain+=a", Some("a")),
            ("MailDomain=a\r\n", Some("a")),
            // Comments and escapes.
            ("MailDomain=a#b", Some("a")),
            ("MailDomain=a # b", Some("a")),
            ("MailDomain=\"a#b\"", Some("\"a")),
            ("MailDomain=a\\#b", Some("a#b")),
            ("MailDomain=a\\\\#b", Some("a\\")),
            ("MailDomain=a\\b\\tc", Some("abtc")),
            ("#MailDomain=a", None),
            // Lines that go on.
            ("MailDomain=a\\\nb", Some("ab")),
            ("MailDomain=a\\\n  # c\nMailProg=/b", Some("a")),
            ("\\\nMailDomain=a", Some("a")),
            ("# x \\\nMailDomain=a", Some("a")),
            // The last counts.
            ("MailDomain=a\nMailDomain=\"b\"", Some("b")),
            ("MyMailDomain=a", None),
        ] {
            assert_eq!(alone(text).value("MailDomain"), value, "{text:?}");
        }
    }

    /// Slurm takes none of these files; what is in them says nothing.
    #[test]
    fn what_slurm_refuses_sets_nothing_else() {
        for text in [
            "MailDomain=",
            "MailProg=/b MailDomain=a",
            "NodeName=x MailDomain=a",
            "Mail Domain=a",
            "=a",
            "MailDomain",
            "",
        ] {
            assert_eq!(alone(text).value("MailDomain"), None, "{text:?}");
        }
    }

    #[test]
    fn the_name_of_a_cluster_is_in_small_letters() {
        for (text, name) in [
            ("# a site\nClusterName=Demo\nSlurmctldHost=a\n", Some("demo")),
            ("ClusterName=One\nClusterName=TWO\n", Some("two")),
            ("ClusterName=a.b_c-D", Some("a.b_c-d")),
            ("ClusterName=\"Quoted Name\"", Some("quoted name")),
            ("ClusterName=\n", None),
            ("", None),
        ] {
            assert_eq!(alone(text).cluster_name().as_deref(), name, "{text:?}");
        }
    }

    #[test]
    fn what_is_included_stands_in_the_place_of_the_line() {
        let files = |name: &str| match name {
            "inc.conf" => Some("MailDomain=included\n".to_owned()),
            "/abs" => Some("include inc.conf\nSlurmUser=s".to_owned()),
            "two.conf" => Some("MailDomain=of-two".to_owned()),
            "loop" => Some("Include loop\nInclude loop\n".to_owned()),
            _ => None,
        };
        for (text, value) in [
            ("include inc.conf", Some("included")),
            ("INCLUDE\tinc.conf # c\n", Some("included")),
            ("MailDomain=a\nInclude inc.conf", Some("included")),
            ("Include inc.conf\nMailDomain=a", Some("a")),
            ("Include /abs", Some("included")),
            ("ClusterName=TWO\nInclude %c.conf", Some("of-two")),
            ("Include nope\nMailDomain=a", Some("a")),
            ("Include loop\nMailDomain=a", Some("a")),
            // Not at the beginning, not such a word, not such a name.
            ("   include inc.conf", None),
            ("Include=inc.conf", None),
            ("Included inc.conf", None),
            ("Include \"inc.conf\"", None),
            ("include", None),
        ] {
            assert_eq!(SlurmConf::parse(text, files).value("MailDomain"), value, "{text:?}");
        }
        assert_eq!(SlurmConf::parse("Include /abs", files).value("slurmuser"), Some("s"));
    }
}
