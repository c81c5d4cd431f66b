//! Whether those who list directories look at the files in them as well.
//!
//! READDIRPLUS gives the attributes of all entries with the listing. That halves the work of a walk that wants
//! them (`ls -l`, tar), and is most of the work of one that does not (`find`, an import that looks for a name): the
//! kernel makes an inode of each. It asks that way for the first part of every directory, whatever is wanted, so
//! what is wanted is learned here, from the lookups that follow. Directories are described in any case, since
//! whoever walks a tree goes on into them.
//!
//! All is relaxed: threads that count past each other give a listing of the other kind, and no wrong one.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Files that must have been left out before anything is concluded.
const MIN_LEFT_OUT: u32 = 8;

/// Beyond as many the past counts half: what is wanted changes from one program to the next.
const MAX_LEFT_OUT: u32 = 256;

/// How many listings have attributes before it is tried again without, at first and at most.
const SPELL: (u32, u32) = (16, 1024);

/// What has been learned.
#[derive(Debug)]
pub(crate) struct Appetite {
    /// Listings that still get attributes of files.
    to_serve: AtomicU32,
    /// How many the next time.
    spell: AtomicU32,
    /// Files that were listed without attributes, and files that were looked up, lately.
    left_out: AtomicU32,
    looked_up: AtomicU32,
}

impl Appetite {
    pub(crate) fn new() -> Self {
        Appetite {
            to_serve: AtomicU32::new(0),
            spell: AtomicU32::new(SPELL.0),
            left_out: AtomicU32::new(0),
            looked_up: AtomicU32::new(0),
        }
    }

    /// Whether a listing that begins now shall have the attributes of files.
    pub(crate) fn wants_files(&self) -> bool {
        let left = self.to_serve.load(Relaxed);
        if left == 0 {
            return false;
        }
        self.to_serve.store(left - 1, Relaxed);
        true
    }

    /// So many files were listed without attributes.
    pub(crate) fn leave_out(&self, n_files: u32) {
        let left_out = self.left_out.load(Relaxed).saturating_add(n_files);
        if left_out <= MAX_LEFT_OUT {
            self.left_out.store(left_out, Relaxed);
            return;
        }
        // Nobody has looked at half of so many: the next spell is a short one again.
        self.spell.store(SPELL.0, Relaxed);
        self.left_out.store(left_out / 2, Relaxed);
        self.looked_up.store(self.looked_up.load(Relaxed) / 2, Relaxed);
    }

    /// A file was looked up by its name.
    pub(crate) fn look_up(&self) {
        let looked_up = self.looked_up.load(Relaxed).saturating_add(1);
        let left_out = self.left_out.load(Relaxed);
        if left_out < MIN_LEFT_OUT || looked_up < left_out / 2 {
            self.looked_up.store(looked_up.min(MAX_LEFT_OUT), Relaxed);
            return;
        }
        let spell = self.spell.load(Relaxed);
        self.to_serve.store(spell, Relaxed);
        self.spell.store(spell.saturating_mul(2).min(SPELL.1), Relaxed);
        self.left_out.store(0, Relaxed);
        self.looked_up.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk over directories of `n_files` files each; gives in how many the files' attributes came with the listing.
    fn walk(appetite: &Appetite, n_directories: u32, n_files: u32, looks: bool) -> u32 {
        let mut served = 0;
        for _ in 0..n_directories {
            if appetite.wants_files() {
                served += 1;
                continue;
            }
            appetite.leave_out(n_files);
            if looks {
                (0..n_files).for_each(|_| appetite.look_up());
            }
        }
        served
    }

    #[test]
    fn who_looks_at_files_soon_gets_them_with_the_listing() {
        for n_files in [1, 3, 10, 200] {
            let appetite = Appetite::new();
            let served = walk(&appetite, 10_000, n_files, true);
            assert!(served > 9_800, "{n_files} files: {served}");
        }
    }

    #[test]
    fn who_does_not_never_does() {
        for n_files in [1, 10, 1000] {
            assert_eq!(walk(&Appetite::new(), 10_000, n_files, false), 0, "{n_files} files");
        }
    }

    #[test]
    fn what_is_wanted_may_change() {
        let appetite = Appetite::new();
        walk(&appetite, 5_000, 10, true);
        // The last spell is served to the end.
        let served = walk(&appetite, 5_000, 10, false);
        assert!(served <= SPELL.1, "{served}");
        let served = walk(&appetite, 1_000, 10, true);
        assert!(served > 900, "{served}");
    }

    #[test]
    fn an_import_that_looks_for_some_names_is_no_walk() {
        let appetite = Appetite::new();
        for _ in 0..1_000 {
            assert!(!appetite.wants_files());
            appetite.leave_out(100);
            (0..5).for_each(|_| appetite.look_up());
        }
    }
}
