//! Telling `srun --multi-prog` from all other command lines.
//!
//! Slurm 22.05 takes the programs of such a step from a table that it has parsed before any plugin
//! runs, so replacing the program has no effect and the task would run on the host, with status 0
//! (tried). The plugin therefore refuses the combination.
//!
//! No interface of Slurm says whether a step is such a one. What tells it is the program's words: srun
//! puts the text of the table among them, where every other step has the words of the command line. So
//! srun sends [fingerprints](Programs) of those words along, and the node compares. That decides. Before
//! it, srun refuses what is certain already, so that nobody waits in a queue for a refusal.

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

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(line: &str, n_own: usize, look: impl FnOnce(CommandLine<'_>) -> T) -> T {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        look(CommandLine { words: &words, n_own })
    }

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
