//! Detecting `srun --multi-prog`.
//!
//! Slurm 22.05 takes the programs of such a step from a table that it has parsed before any plugin
//! runs, so replacing the program has no effect and the task would run on the host, with status 0
//! (tried). The plugin therefore refuses the combination: in srun by the command line, and in
//! slurmstepd by the shape of the arguments, should the first have been got round.

use std::ffi::CStr;

/// Tells whether srun's own arguments hold `--multi-prog`. getopt_long takes unique abbreviations,
/// and no other option of srun begins with `--mu`.
pub(crate) fn on_command_line<'a>(arguments: impl Iterator<Item = &'a [u8]>) -> bool {
    arguments
        .skip(1)
        .take_while(|argument| *argument != b"--")
        .any(|argument| argument.len() >= 4 && b"--multi-prog".starts_with(argument))
}

/// Tells whether a task's two arguments are the name and the text of a `--multi-prog` file: each
/// line of the text a set of ranks and a program.
pub(crate) fn is_table(n_arguments: usize, second: Option<&CStr>) -> bool {
    let Some(text) = second.filter(|_| n_arguments == 2) else { return false };
    let text = text.to_string_lossy();
    if !text.contains('\n') {
        return false;
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut n_lines = 0;
    for line in lines {
        let mut words = line.split_whitespace();
        let ranks = words.next().unwrap_or_default();
        let is_ranks = ranks.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ',' | '*'));
        if !is_ranks || words.next().is_none() {
            return false;
        }
        n_lines += 1;
    }
    n_lines > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_found_also_abbreviated() {
        let found = |line: &str| on_command_line(line.split(' ').map(str::as_bytes));
        for line in ["srun --multi-prog table", "srun -N2 --multi table", "srun --mul t"] {
            assert!(found(line), "{line}");
        }
        for line in ["srun true", "srun --mem=1 true", "srun -- --multi-prog"] {
            assert!(!found(line), "{line}");
        }
    }

    #[test]
    fn a_table_is_told_from_an_argument() {
        for (text, expected) in [
            (c"0 a.out\n1-3 b.out x\n", true),
            (c"# ranks\n* ./a.out %t\n", true),
            (c"1 two", false),
            (c"import numpy\nprint(1)\n", false),
            (c"0\n1\n", false),
            (c"\n", false),
        ] {
            assert_eq!(is_table(2, Some(text)), expected, "{text:?}");
        }
        assert!(!is_table(3, Some(c"0 a\n")));
        assert!(!is_table(1, None));
    }
}
