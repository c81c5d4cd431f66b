//! `srun --multi-prog`: telling it from all other command lines, and leading its programs into the container.
//!
//! The node takes the programs of such a step from a table that it has parsed before any plugin runs, so replacing the
//! program there has no effect: the task would run on the host, with status 0 (tried on 22.05). It is srun that reads the
//! table, though, and hands its text on as the second of the step's words. So the plugin [sets the trampoline
//! before](led_by) every program of it in srun, and the node refuses a table in which it does not [stand](is_led_by).
//!
//! No interface of Slurm says whether a step is such a one. What tells it is the program's words: they are the text of the
//! table, where every other step has the words of the command line. So srun sends [fingerprints](Programs) of those words
//! along, and the node compares.

use std::ffi::CStr;

/// `:` alone parts the components of a heterogeneous step.
const SEPARATOR: &[u8] = b":";

/// The words of srun's command line, and how many of them getopt took as options in the component
/// that was parsed last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommandLine<'a> {
    /// All words, srun's own name first.
    pub(crate) words: &'a [&'a [u8]],
    /// getopt's `optind`: the first word that is no option, counted from the component's first.
    pub(crate) n_own: usize,
}

impl CommandLine<'_> {
    /// Tells whether `--multi-prog` certainly stands among srun's own words. getopt_long takes unique
    /// abbreviations, and no other option of srun begins with `--mu`. Behind a word that may be an
    /// option with a value to come it could be that value: then it is not certain.
    pub(crate) fn surely_asks(&self) -> bool {
        let Some(own) = self.words.get(..self.n_own) else { return false };
        own.windows(2).any(|pair| {
            pair[1].len() >= 4 && b"--multi-prog".starts_with(pair[1]) && !may_take_value(pair[0])
        })
    }
}

/// Tells whether the word that follows may be the value of this one.
fn may_take_value(word: &[u8]) -> bool {
    match word {
        [b'-', b'-', name @ ..] => !name.contains(&b'='),
        // The last letter of short options in one word; a digit ends a value.
        [b'-', .., last] => !last.is_ascii_digit(),
        _ => false,
    }
}

/// Fingerprints of the arguments of the programs that a command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programs(Vec<u64>);

impl Programs {
    /// None yet.
    pub(crate) const NOTHING: Programs = Programs(Vec::new());

    /// Adds what the component that was parsed last may have as program. Which component that was is
    /// not known, so every one gives a candidate; each of them is made of words of the command line,
    /// and none is the text of a table.
    pub(crate) fn add(&mut self, line: CommandLine<'_>) {
        let separators = line.words.iter().enumerate().filter(|(_, word)| **word == SEPARATOR);
        for start in std::iter::once(0).chain(separators.map(|(index, _)| index)) {
            let Some(program) = start.checked_add(line.n_own).and_then(|first| line.words.get(first..))
            else {
                continue;
            };
            let program = program.split(|word| *word == SEPARATOR).next().unwrap_or_default();
            if let Some((_, arguments)) = program.split_first().filter(|_| line.n_own > 0) {
                let mark = fingerprint(arguments.iter().copied());
                if !self.0.contains(&mark) {
                    self.0.push(mark);
                }
            }
        }
    }

    /// Whether none is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a program with these arguments is among them.
    pub(crate) fn have<'a>(&self, arguments: impl Iterator<Item = &'a [u8]>) -> bool {
        self.0.contains(&fingerprint(arguments))
    }

    /// As a variable has them.
    pub(crate) fn to_text(&self) -> String {
        self.0.iter().map(|mark| format!("{mark:x}")).collect::<Vec<_>>().join(",")
    }

    /// From a variable; what is no fingerprint is left out, and so matches nothing.
    pub(crate) fn parse(text: &str) -> Self {
        Programs(text.split(',').filter_map(|word| u64::from_str_radix(word, 16).ok()).collect())
    }
}

/// FNV-1a, 64 bits, over the words and an end mark for each. Not against malice: who wants a task on
/// the host need not ask for a container.
fn fingerprint<'a>(words: impl Iterator<Item = &'a [u8]>) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    words.fold(BASIS, |hash, word| word.iter().copied().chain(std::iter::once(0)).fold(hash, add))
}

/// Tells whether the second word of a task looks like the text of a table: a set of ranks and a
/// program in its first line. For steps of an srun that has not told what it was given.
pub(crate) fn is_table(second: Option<&CStr>) -> bool {
    let text = second.map(CStr::to_string_lossy).unwrap_or_default();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut words = lines.next().unwrap_or_default().split_whitespace();
    let ranks = words.next().unwrap_or_default();
    let is_ranks = ranks.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ',' | '*' | ':'));
    is_ranks && words.next().is_some()
}

/// The ends of the sets of ranks in a table: behind each follows a program. Lines are what `multi_prog_get_argv()` of
/// Slurm's `multi_prog.c` takes for them: one that ends in a backslash goes on in the next, which may be a comment as well,
/// and empty ones do not count.
fn ends_of_ranks(table: &[u8]) -> Vec<usize> {
    let (mut ends, mut offset, mut goes_on) = (Vec::new(), 0, false);
    for line in table.split(|byte| *byte == b'\n') {
        let begin = offset;
        offset += line.len() + 1;
        if line.is_empty() || std::mem::replace(&mut goes_on, line.ends_with(b"\\")) {
            continue;
        }
        let n_blank = line.iter().take_while(|byte| is_space(**byte)).count();
        let n_ranks = line.iter().skip(n_blank).take_while(|byte| !is_space(**byte)).count();
        if n_ranks > 0 && line[n_blank] != b'#' {
            ends.push(begin + n_blank + n_ranks);
        }
    }
    ends
}

/// `isspace(3)` of the C locale.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// A word as it stands in a table, with a blank before it.
fn in_a_table(word: &[u8]) -> Vec<u8> {
    let is_special = |byte: u8| is_space(byte) || matches!(byte, b'%' | b'\'' | b'\\');
    let escaped = word.iter().flat_map(|byte| is_special(*byte).then_some(b'\\').into_iter().chain([*byte]));
    std::iter::once(b' ').chain(escaped).collect()
}

/// The table with `program` before every program, which becomes its first argument.
pub(crate) fn led_by(table: &[u8], program: &[u8]) -> Vec<u8> {
    let (program, mut led, mut done) = (in_a_table(program), Vec::with_capacity(2 * table.len()), 0);
    for end in ends_of_ranks(table) {
        led.extend_from_slice(&table[done..end]);
        led.extend_from_slice(&program);
        done = end;
    }
    led.extend_from_slice(&table[done..]);
    led
}

/// Whether `program` stands before every program of the table, and there is one.
pub(crate) fn is_led_by(table: &[u8], program: &[u8]) -> bool {
    let program = in_a_table(program);
    let ends = ends_of_ranks(table);
    let is_next = |end: &usize| {
        let rest = table[*end..].strip_prefix(program.as_slice());
        rest.is_some_and(|rest| rest.first().is_some_and(|byte| is_space(*byte)))
    };
    !ends.is_empty() && ends.iter().all(is_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_found_also_abbreviated_and_values_are_not_taken_for_it() {
        for (line, n_own, expected) in [
            ("srun --multi-prog table", 2, true),
            ("srun -N2 --multi table", 3, true),
            ("srun --mul t", 2, true),
            ("srun --container-image=x --multi-prog t", 3, true),
            ("srun --comment x --multi-prog t", 4, true),
            ("srun true", 1, false),
            ("srun --mem=1 true", 2, false),
            ("srun -- --multi-prog", 2, false),
            ("srun prog --multi-prog x", 1, false),
            ("srun prog --multi", 1, false),
            // Not certain from here: the node decides.
            ("srun --comment --multi-prog prog", 3, false),
            ("srun -J --multi-prog prog", 3, false),
            ("srun --comment -- --multi-prog table", 4, false),
            ("srun --exclusive --multi-prog table", 3, false),
            // Not what getopt has counted.
            ("srun --multi-prog", 9, false),
        ] {
            assert_eq!(with(line, n_own, |line| line.surely_asks()), expected, "{line}");
        }
    }

    #[test]
    fn a_program_is_set_before_every_other() {
        for (table, led) in [
            ("0 a.out", "0 /t a.out"),
            (
                "  0-3,5\ta.out %t 'x y'\n\n# no\n* b.out\n",
                "  0-3,5 /t\ta.out %t 'x y'\n\n# no\n* /t b.out\n",
            ),
            // A line that goes on, over an empty one too, and a comment that does.
            ("0 a \\\n1 b\n2 c", "0 /t a \\\n1 b\n2 /t c"),
            ("0 \\\n\na\n2 c", "0 /t \\\n\na\n2 /t c"),
            ("# no \\\n0 a\n1 b", "# no \\\n0 a\n1 /t b"),
            ("", ""),
            (" \n#\n", " \n#\n"),
        ] {
            let done = led_by(table.as_bytes(), b"/t");
            assert_eq!(String::from_utf8_lossy(&done), led, "{table:?}");
            assert_eq!(is_led_by(&done, b"/t"), led != table, "{table:?}");
            assert!(!is_led_by(table.as_bytes(), b"/t"), "{table:?}");
            assert!(!is_led_by(&done, b"/"), "{table:?}");
        }
    }

    #[test]
    fn a_table_that_is_led_in_part_is_not_led() {
        assert!(!is_led_by(b"0 /t a\n1 b\n", b"/t"));
        assert!(!is_led_by(b"0 /t", b"/t"));
    }

    #[test]
    fn a_path_is_one_word_of_a_table() {
        assert_eq!(led_by(b"0 a", b"/a b/100%'\\"), b"0 /a\\ b/100\\%\\'\\\\ a");
    }

    fn with<T>(line: &str, n_own: usize, look: impl FnOnce(CommandLine<'_>) -> T) -> T {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        look(CommandLine { words: &words, n_own })
    }

    #[test]
    fn programs_of_the_command_line_are_known_and_tables_are_not() {
        for (line, n_own, task, expected) in [
            ("srun -n2 prog a b", 2, &["a", "b"][..], true),
            ("srun prog --multi-prog", 1, &["--multi-prog"], true),
            ("srun --comment -- prog 1-x", 3, &["1-x"], true),
            ("srun prog", 1, &[], true),
            ("srun --comment -- --multi-prog table", 4, &["0 a.out\n"], false),
            ("srun --comment -- --multi-prog table more", 4, &["0 a.out", "more"], false),
            // The second component of a heterogeneous step.
            ("srun -n1 prog a : -n2 other b c", 2, &["b", "c"], true),
            ("srun -n1 prog a : -n2 other b c", 2, &["a"], true),
            ("srun -n1 prog a : -n2 other b c", 2, &["b"], false),
        ] {
            let mut programs = Programs::NOTHING;
            with(line, n_own, |line| programs.add(line));
            let sent = Programs::parse(&programs.to_text());
            assert_eq!(sent, programs);
            assert_eq!(sent.have(task.iter().map(|word| word.as_bytes())), expected, "{line}");
        }
        // Words are not run together.
        assert_ne!(fingerprint([&b"ab"[..], b"c"].into_iter()), fingerprint([&b"a"[..], b"bc"].into_iter()));
    }

    #[test]
    fn what_getopt_cannot_have_counted_gives_nothing() {
        for n_own in [0, 3, usize::MAX] {
            let mut programs = Programs::NOTHING;
            with("srun prog a", n_own, |line| programs.add(line));
            assert!(programs.is_empty(), "{n_own}");
        }
    }

    #[test]
    fn a_table_is_told_from_an_argument() {
        for (text, expected) in [
            (c"0 a.out\n1-3 b.out x\n", true),
            (c"# ranks\n* ./a.out %t\n", true),
            (c"0-1 /bin/sh", true),
            (c"import numpy\nprint(1)\n", false),
            (c"0\n1\n", false),
            (c"-c", false),
            (c"\n", false),
        ] {
            assert_eq!(is_table(Some(text)), expected, "{text:?}");
        }
        assert!(!is_table(None));
    }
}
