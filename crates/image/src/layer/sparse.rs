//! Sparse files: which parts of a file the archive holds.

use super::tar::TarError;

/// Most pieces of one sparse file.
pub(crate) const MAX_PIECES: usize = 1 << 20;

/// A checked map: pieces in ascending order, not overlapping, inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseMap {
    pieces: Vec<(u64, u64)>,
    real_size: u64,
}

/// What comes next at some position of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// This many zero bytes that the archive does not hold.
    Hole(u64),
    /// This many bytes from the archive.
    Data(u64),
    /// The end of the file.
    End,
}

impl SparseMap {
    /// Checks a map whose pieces must add up to the `stored` bytes in the archive.
    pub(crate) fn new(pieces: Vec<(u64, u64)>, real_size: u64, stored: u64) -> Result<Self, TarError> {
        let mut end = 0u64;
        let mut total = 0u64;
        for (offset, len) in &pieces {
            let next = offset.checked_add(*len).filter(|n| *offset >= end && *n <= real_size);
            end = next.ok_or(TarError::Malformed("sparse map"))?;
            total += len;
        }
        if total != stored || pieces.len() > MAX_PIECES {
            return Err(TarError::Malformed("sparse map"));
        }
        let pieces = pieces.into_iter().filter(|(_, len)| *len > 0).collect();
        Ok(Self { pieces, real_size })
    }

    pub(crate) fn real_size(&self) -> u64 {
        self.real_size
    }

    /// Tells what is at `position`; `piece` is the caller's cursor, starting at 0.
    pub(crate) fn run_at(&self, position: u64, piece: &mut usize) -> Run {
        while let Some((offset, len)) = self.pieces.get(*piece) {
            if position < *offset {
                return Run::Hole(offset - position);
            }
            if position < offset + len {
                return Run::Data(offset + len - position);
            }
            *piece += 1;
        }
        if position < self.real_size { Run::Hole(self.real_size - position) } else { Run::End }
    }
}
