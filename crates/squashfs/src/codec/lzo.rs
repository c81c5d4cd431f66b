//! LZO1X decoder, written from the stream description in the kernel's `Documentation/staging/lzo.rst`.
//!
//! The stream is a series of instructions. Each copies a match from what was already written and
//! then up to three literals; what the bytes below 16 mean depends on how many literals the previous
//! instruction copied. Every read and write is checked, so a lying stream gives an error and never
//! touches anything outside `dst`.

/// Why a stream was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LzoError {
    /// The stream ends inside an instruction, or without an end marker.
    #[error("lzo stream ends too early")]
    InputEnds,
    /// More output than there is room for.
    #[error("lzo stream does not fit its block")]
    OutputFull,
    /// A match reaches before the start of the output.
    #[error("lzo match reaches before the block")]
    Distance,
    /// Bytes follow the end marker.
    #[error("lzo stream has bytes after its end")]
    Trailing,
}

/// Literals the previous instruction copied, as far as it changes the meaning of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// None: a small byte starts a long literal run.
    NoLiterals,
    /// One to three: a small byte is a two-byte match nearby.
    FewLiterals,
    /// A long run: a small byte is a three-byte match further away.
    LongRun,
}

struct Streams<'a> {
    src: &'a [u8],
    at: usize,
    dst: &'a mut [u8],
    out: usize,
}

impl Streams<'_> {
    fn byte(&mut self) -> Result<usize, LzoError> {
        let byte = *self.src.get(self.at).ok_or(LzoError::InputEnds)?;
        self.at += 1;
        Ok(usize::from(byte))
    }

    fn pair(&mut self) -> Result<usize, LzoError> {
        Ok(self.byte()? | (self.byte()? << 8))
    }

    /// A length whose short field was zero: each zero byte adds 255, the first other byte ends it.
    fn long_length(&mut self, base: usize) -> Result<usize, LzoError> {
        let mut length = base;
        loop {
            match self.byte()? {
                // Bounded by the input: every step takes one of its bytes.
                0 => length += 255,
                last => return Ok(length + last),
            }
        }
    }

    fn literals(&mut self, count: usize) -> Result<(), LzoError> {
        let end = self.at.checked_add(count).ok_or(LzoError::InputEnds)?;
        let from = self.src.get(self.at..end).ok_or(LzoError::InputEnds)?;
        let to = self.dst.get_mut(self.out..self.out + count).ok_or(LzoError::OutputFull)?;
        to.copy_from_slice(from);
        self.at = end;
        self.out += count;
        Ok(())
    }

    fn copy_match(&mut self, distance: usize, length: usize) -> Result<(), LzoError> {
        let start = self.out.checked_sub(distance).ok_or(LzoError::Distance)?;
        let end = self.out.checked_add(length).ok_or(LzoError::OutputFull)?;
        if end > self.dst.len() {
            return Err(LzoError::OutputFull);
        }
        if distance >= length {
            self.dst.copy_within(start..start + length, self.out);
        } else {
            // The match overlaps its own output: it repeats the last `distance` bytes.
            for index in 0..length {
                self.dst[self.out + index] = self.dst[start + index];
            }
        }
        self.out = end;
        Ok(())
    }
}

/// Decodes one LZO1X stream into `dst` and returns how many bytes it holds.
pub(crate) fn decompress(src: &[u8], dst: &mut [u8]) -> Result<usize, LzoError> {
    let mut io = Streams { src, at: 0, dst, out: 0 };
    let mut after = After::NoLiterals;
    // Only the first byte may be a bare literal run.
    if let Some(&first) = src.first()
        && first > 17
    {
        io.at = 1;
        let count = usize::from(first) - 17;
        io.literals(count)?;
        after = if count < 4 { After::FewLiterals } else { After::LongRun };
    }
    loop {
        let op = io.byte()?;
        let literals = match op {
            0..=15 if after == After::NoLiterals => {
                let length = if op == 0 { io.long_length(15)? } else { op };
                io.literals(length + 3)?;
                after = After::LongRun;
                continue;
            }
            0..=15 => {
                let (base, length) = if after == After::FewLiterals { (1, 2) } else { (2049, 3) };
                let distance = (io.byte()? << 2) + (op >> 2) + base;
                io.copy_match(distance, length)?;
                op & 3
            }
            16..=31 => {
                let length = if op & 7 == 0 { io.long_length(7)? } else { op & 7 };
                let tail = io.pair()?;
                let distance = 16384 + ((op & 8) << 11) + (tail >> 2);
                if distance == 16384 {
                    break;
                }
                io.copy_match(distance, length + 2)?;
                tail & 3
            }
            32..=63 => {
                let length = if op & 31 == 0 { io.long_length(31)? } else { op & 31 };
                let tail = io.pair()?;
                io.copy_match((tail >> 2) + 1, length + 2)?;
                tail & 3
            }
            _ => {
                let length = if op < 128 { 3 + ((op >> 5) & 1) } else { 5 + ((op >> 5) & 3) };
                let distance = (io.byte()? << 3) + ((op >> 2) & 7) + 1;
                io.copy_match(distance, length)?;
                op & 3
            }
        };
        io.literals(literals)?;
        after = if literals == 0 { After::NoLiterals } else { After::FewLiterals };
    }
    if io.at == src.len() { Ok(io.out) } else { Err(LzoError::Trailing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: [u8; 3] = [0x11, 0, 0];

    fn run(stream: &[u8], room: usize) -> Result<Vec<u8>, LzoError> {
        let mut dst = vec![0; room];
        let length = decompress(stream, &mut dst)?;
        dst.truncate(length);
        Ok(dst)
    }

    #[test]
    fn decodes_each_instruction() {
        let cases: [(&str, Vec<u8>, Vec<u8>); 5] = [
            ("first byte literals", [&[17 + 3, b'a', b'b', b'c'][..], &END].concat(), b"abc".to_vec()),
            (
                "overlapping near match",
                [&[17 + 4, b'a', b'b', b'c', b'd', 0b0100_1100, 0][..], &END].concat(),
                b"abcdabc".to_vec(),
            ),
            (
                "long match",
                [&[17 + 4, b'x', b'y', b'z', b'w', 32, 1, 0b0000_0000, 0][..], &END].concat(),
                [b"xyzw".to_vec(), vec![b'w'; 34]].concat(),
            ),
            (
                "long literal run",
                [&[0, 1][..], &(0..19).collect::<Vec<u8>>(), &END].concat(),
                (0..19).collect(),
            ),
            (
                "two byte match after few literals",
                [&[18, b'q', 0b0000_0000, 0][..], &END].concat(),
                b"qqq".to_vec(),
            ),
        ];
        for (name, stream, expected) in cases {
            assert_eq!(run(&stream, 100).as_ref(), Ok(&expected), "{name}");
        }
    }

    #[test]
    fn refuses_lies() {
        let cases: [(&str, &[u8], usize, LzoError); 6] = [
            ("empty", &[], 10, LzoError::InputEnds),
            ("no end", &[18, b'q'], 10, LzoError::InputEnds),
            ("no room", &[20, 1, 2, 3, 0x11, 0, 0], 2, LzoError::OutputFull),
            ("far match", &[18, b'q', 0b0000_0100, 9, 0x11, 0, 0], 10, LzoError::Distance),
            ("trailing", &[18, b'q', 0x11, 0, 0, 1], 10, LzoError::Trailing),
            ("endless length", &[0, 0, 0, 0, 0], 10, LzoError::InputEnds),
        ];
        for (name, stream, room, expected) in cases {
            assert_eq!(run(stream, room), Err(expected), "{name}");
        }
    }
}
