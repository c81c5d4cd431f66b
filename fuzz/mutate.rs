//! Mutations of seeds for the short runs that `cargo test` makes of the fuzz targets' exercises.
//!
//! The same number gives the same mutations, so that a failure can be seen again. It is not coverage-guided
//! and no replacement for `cargo fuzz`; it keeps the exercises and their invariants alive.

/// Bytes that mean something to the parsers here.
const TELLING: &[u8] = b"\0\x01\x7f\x80\xff\n\r\t \"\\/:;,.{}[]0129-+eE#`$=";

/// Words that do.
const WORDS: [&[u8]; 12] = [
    b"null",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\\ud800",
    b"\"\"",
    b"[]",
    b"{}",
    b"4294967295",
    b"[[[[[[[[",
    b"\xff\xfe",
    b"..",
];

/// A source of mutations.
pub(crate) struct Mutations(u64);

impl Mutations {
    pub(crate) fn new(number: u64) -> Self {
        Mutations(number)
    }

    /// The next 64 bits (splitmix64).
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, or 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.bits() % u64::try_from(limit.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    /// `seed` with one to four changes.
    pub(crate) fn of(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let to = (at + self.below(40)).min(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..to)),
                2 => {
                    let part = bytes[at..to].to_vec();
                    let elsewhere = self.below(bytes.len() + 1);
                    bytes.splice(elsewhere..elsewhere, part);
                }
                3 => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(at..to, word.iter().copied());
                }
                4 | 5 => {
                    let telling = TELLING[self.below(TELLING.len())];
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = telling;
                    }
                }
                _ => {
                    let bit = self.below(8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << bit;
                    }
                }
            }
        }
        bytes
    }
}
