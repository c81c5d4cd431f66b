//! What is known of the full blocks of a file: digests, and holes as runs.

pub(crate) type Hash = [u8; 32];

/// The full blocks of a file in their order. Equal contents give equal trails, however they came: as zeros or as
/// holes, at once or block by block.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    /// Digests of the blocks that are no holes.
    data: Vec<Hash>,
    /// Runs of holes, in ascending order, never next to each other.
    holes: Vec<HoleRun>,
    len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HoleRun {
    start: u64,
    count: u64,
    /// Blocks in the runs before this one.
    before: u64,
}

impl Trail {
    /// Number of blocks.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Adds a block that is no hole.
    pub(crate) fn push(&mut self, hash: Hash) {
        self.data.push(hash);
        self.len += 1;
    }

    /// Adds holes.
    pub(crate) fn push_holes(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        match self.holes.last_mut() {
            Some(last) if last.start + last.count == self.len => last.count += count,
            last => {
                let before = last.map_or(0, |last| last.before + last.count);
                self.holes.push(HoleRun { start: self.len, count, before });
            }
        }
        self.len += count;
    }

    /// The digest of the block at `at`, unless it is a hole or beyond the end.
    pub(crate) fn hash(&self, at: u64) -> Option<&Hash> {
        let before = match self.run_before(at) {
            Some(run) if at < run.start + run.count => return None,
            Some(run) => run.before + run.count,
            None => 0,
        };
        self.data.get(usize::try_from(at - before).ok()?)
    }

    /// The number of holes from `at` on; 0 if there is none at `at`.
    pub(crate) fn holes_from(&self, at: u64) -> u64 {
        self.run_before(at).map_or(0, |run| (run.start + run.count).saturating_sub(at))
    }

    /// The last run that starts at `at` or before.
    fn run_before(&self, at: u64) -> Option<HoleRun> {
        let n = self.holes.partition_point(|run| run.start <= at);
        self.holes.get(n.checked_sub(1)?).copied()
    }

    /// Adds everything that tells this trail from others to a digest.
    pub(crate) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.len.to_le_bytes());
        for run in &self.holes {
            hasher.update(&run.start.to_le_bytes());
            hasher.update(&run.count.to_le_bytes());
        }
        hasher.update(self.data.as_flattened());
    }

    /// The first `count` blocks as a digest.
    pub(crate) fn beginning(&self, count: u64) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for at in 0..count.min(self.len) {
            // No block has the digest of nothing at all.
            hasher.update(self.hash(at).unwrap_or(&[0; 32]));
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_data_are_found_again() {
        let mut trail = Trail::default();
        let mut plain: Vec<Option<Hash>> = Vec::new();
        for (number, holes) in [(1u8, 0u64), (2, 3), (3, 0), (4, 1), (5, 1000)] {
            trail.push([number; 32]);
            plain.push(Some([number; 32]));
            for part in [holes / 2, holes - holes / 2] {
                trail.push_holes(part);
                plain.extend(std::iter::repeat_n(None, usize::try_from(part).unwrap()));
            }
        }
        assert_eq!(trail.len(), plain.len() as u64);
        assert_eq!(trail.holes.len(), 3, "runs next to each other are one");
        for (at, want) in plain.iter().enumerate() {
            let run = plain[at..].iter().take_while(|block| block.is_none()).count() as u64;
            assert_eq!((trail.hash(at as u64), trail.holes_from(at as u64)), (want.as_ref(), run), "{at}");
        }
        let end = trail.len();
        assert_eq!((trail.hash(end), trail.holes_from(end)), (None, 0));
        // As many holes as a file of 2^60 bytes has cost no more than one.
        trail.push([9; 32]);
        trail.push_holes(1 << 43);
        assert_eq!((trail.holes_from(end + 2), trail.holes.len()), ((1 << 43) - 1, 4));
    }
}
