//! The few facts about an ELF file that a distribution build must have: whether it asks for an
//! interpreter, and whether its undefined symbols are bound when it is loaded.
//!
//! Numbers from the System V ABI and its GNU extensions; 64-bit little-endian files only.

/// Program headers that are looked at; real files have about ten.
const MAX_HEADERS: u16 = 256;

/// Entries of the dynamic section that are looked at.
const MAX_DYNAMIC: u64 = 4096;

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_BIND_NOW: u64 = 24;
const DT_FLAGS: u64 = 30;
const DF_BIND_NOW: u64 = 8;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_NOW: u64 = 1;

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// It names a dynamic loader (PT_INTERP).
    pub(crate) interpreter: bool,
    /// It names shared libraries (DT_NEEDED).
    pub(crate) needs_libraries: bool,
    /// All its symbols are resolved when it is loaded.
    pub(crate) binds_now: bool,
}

/// Reads the facts; `None` if this is no 64-bit little-endian ELF file or it is cut off.
pub(crate) fn facts(bytes: &[u8]) -> Option<Facts> {
    // e_ident: magic, ELFCLASS64, ELFDATA2LSB.
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let mut facts = Facts::default();
    let table = u64_at(bytes, 32)?;
    let (size, count) = (u64::from(u16_at(bytes, 54)?), u16_at(bytes, 56)?);
    for index in 0..count.min(MAX_HEADERS) {
        let header = table.checked_add(size.checked_mul(index.into())?)?;
        match u32_at(bytes, header)? {
            PT_INTERP => facts.interpreter = true,
            PT_DYNAMIC => {
                let offset = u64_at(bytes, header.checked_add(8)?)?;
                let entries = u64_at(bytes, header.checked_add(32)?)? / 16;
                dynamic(bytes, offset, entries, &mut facts)?;
            }
            _ => {}
        }
    }
    Some(facts)
}

fn dynamic(bytes: &[u8], offset: u64, entries: u64, facts: &mut Facts) -> Option<()> {
    for index in 0..entries.min(MAX_DYNAMIC) {
        let entry = offset.checked_add(index.checked_mul(16)?)?;
        let value = u64_at(bytes, entry.checked_add(8)?)?;
        match u64_at(bytes, entry)? {
            DT_NULL => break,
            DT_NEEDED => facts.needs_libraries = true,
            DT_BIND_NOW => facts.binds_now = true,
            DT_FLAGS => facts.binds_now |= value & DF_BIND_NOW != 0,
            DT_FLAGS_1 => facts.binds_now |= value & DF_1_NOW != 0,
            _ => {}
        }
    }
    Some(())
}

fn at<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    bytes.get(usize::try_from(offset).ok()?..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: u64) -> Option<u16> {
    at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: u64) -> Option<u32> {
    at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: u64) -> Option<u64> {
    at(bytes, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_a_dynamic_program() {
        let own = std::fs::read(std::env::current_exe().expect("this program")).expect("readable");
        let facts = facts(&own).expect("an ELF file");
        // rustc links programs with full RELRO unless told otherwise.
        assert!(facts.interpreter && facts.needs_libraries && facts.binds_now);
    }

    #[test]
    fn other_bytes_are_no_elf_file() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01", &[0; 4096]] {
            assert_eq!(facts(bytes), None);
        }
    }

    #[test]
    fn cut_files_are_refused_and_wild_ones_are_bounded() {
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[54] = 56;
        assert_eq!(facts(&file), Some(Facts::default()), "no program headers");
        file[56] = 1;
        file[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(facts(&file), None);
        // A dynamic section that claims to be endless and lies outside the file.
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        let mut header = vec![0u8; 56];
        header[0] = 2;
        header[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        file.extend(header);
        file[64 + 8..64 + 16].copy_from_slice(&1000u64.to_le_bytes());
        assert_eq!(facts(&file), None);
    }
}
