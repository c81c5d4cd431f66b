//! What a dynamic program needs first, decompressed while its container is still being built.
//!
//! A start from an image spends most of its time waiting for blocks: the program's, its loader's,
//! the C library's. Which ones is known as soon as the program is: the second thread of the server
//! has nothing else to do meanwhile, and what it guesses wrong costs a few blocks of the cache.
//! Nothing that goes wrong here matters: the payload will ask again, and be told.

use std::sync::Arc;

use situla_squashfs::{FileType, Image, Inode};

use crate::own_program::script_interpreter;

/// The most of one file that is decompressed in advance, in bytes.
const MAX_PRELOADED: u64 = 2 << 20;

/// Files whose end is looked at in advance, in bytes: to find the last block of a longer one takes time.
const MAX_FILE: u64 = 256 << 20;

/// Places at which the program is looked for; the search path may be the image's.
const MAX_PROGRAMS: usize = 16;

/// The C libraries that loaders bring along, beside themselves.
const C_LIBRARY: &[u8] = b"libc.so.6";

/// Program headers that are looked at; real programs have about a dozen.
const MAX_HEADERS: usize = 32;
const PT_INTERP: u32 = 3;

/// An image, and what will be run from it.
#[derive(Debug)]
pub(crate) struct WarmUp {
    /// The image.
    pub(crate) image: Arc<Image>,
    /// Where the program may be; the first that exists counts.
    pub(crate) programs: Vec<Vec<u8>>,
}

impl WarmUp {
    /// Decompresses what the program will need.
    pub(crate) fn run(&self) {
        let found = self.programs.iter().take(MAX_PROGRAMS).find_map(|path| self.file(path));
        let Some(mut program) = found else { return };
        let mut head = [0; 4096];
        let mut length = self.image.read(&program, 0, &mut head).unwrap_or(0);
        if let Some(interpreter) = script_interpreter(&head[..length]) {
            let Some(found) = self.file(interpreter) else { return };
            program = found;
            length = self.image.read(&program, 0, &mut head).unwrap_or(0);
        }
        // What the loader reads of the program itself lies at both ends of it.
        self.preload_end(&program);
        let Some(loader) = elf_interpreter(&head[..length]) else { return };
        let Some(file) = self.file(loader) else { return };
        self.preload(&file);
        if let Ok(Some(library)) = self.image.resolve_beside(loader, C_LIBRARY)
            && library.file_type() == FileType::File
        {
            self.preload(&library);
        }
    }

    fn file(&self, path: &[u8]) -> Option<Inode> {
        let found = self.image.resolve(path, true).ok().flatten();
        found.filter(|inode| inode.file_type() == FileType::File)
    }

    fn preload_end(&self, file: &Inode) {
        if file.size <= MAX_FILE {
            let _ = self.image.preload(file, file.size.saturating_sub(1));
        }
    }

    fn preload(&self, file: &Inode) {
        let block = u64::from(self.image.superblock().block_size);
        let end = file.size.min(MAX_PRELOADED);
        // First what the loader reads first: the headers, then the data at the end.
        let _ = self.image.preload(file, 0);
        self.preload_end(file);
        let mut offset = block;
        while offset < end {
            if self.image.preload(file, offset).is_err() {
                return;
            }
            offset += block;
        }
    }
}

/// The loader that a 64-bit little-endian ELF program asks for, if its name is in `head`.
fn elf_interpreter(head: &[u8]) -> Option<&[u8]> {
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count.min(MAX_HEADERS) {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == PT_INTERP as usize {
            let start = number(header.checked_add(8)?, 8)?;
            let end = start.checked_add(number(header.checked_add(32)?, 8)?)?;
            return head.get(start..end)?.split(|byte| *byte == 0).next();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_are_found_and_damage_is_no_panic() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let head = &own[..4096];
        let loader = String::from_utf8_lossy(elf_interpreter(head).unwrap()).into_owned();
        assert!(std::path::Path::new(&loader).exists(), "{loader:?}");
        // Cut off anywhere, and with every byte of the headers damaged: no panic.
        for length in 0..head.len() {
            let _ = elf_interpreter(&head[..length]);
        }
        for at in 0..1024 {
            let mut damaged = head.to_vec();
            damaged[at] = 0xff;
            let _ = elf_interpreter(&damaged);
        }
    }
}
