//! What a plugin's file says of itself, read without loading it: for which Slurm it was built, and how it speaks to the
//! trampoline.
//!
//! Slurm's own check of `plugin_version` comes when a command of Slurm has loaded the file, and then that command
//! fails. Nothing of the file is executed here. Numbers from the System V ABI; 64-bit little-endian files only, as
//! all machines are that we build for.

use super::slurm::Version;

/// Bytes of a plugin; ours has half a megabyte.
pub(crate) const MAX_PLUGIN: u64 = 64 << 20;

/// Sections, program headers and symbols that are looked at; real files have a few dozen.
const MAX_ENTRIES: u64 = 1 << 16;

const SHT_DYNSYM: u32 = 11;
const PT_LOAD: u32 = 1;
const SECTION_SIZE: u64 = 64;
const SYMBOL_SIZE: u64 = 24;

/// What a plugin of ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PluginFacts {
    /// The Slurm that it was built for; the last number does not matter to Slurm.
    pub(crate) slurm: Version,
    /// How it speaks to the trampoline: 0 where it has no number yet.
    pub(crate) protocol: u32,
}

/// Reads what a plugin says; `None` where this is no plugin of Slurm.
pub(crate) fn facts(bytes: &[u8]) -> Option<PluginFacts> {
    let [_, major, minor, micro] = symbol(bytes, b"plugin_version")?.to_be_bytes();
    let slurm = Version { major: major.into(), minor: minor.into(), micro: micro.into() };
    Some(PluginFacts { slurm, protocol: symbol(bytes, b"situla_protocol").unwrap_or(0) })
}

/// The 32-bit number that a dynamic symbol stands for.
fn symbol(bytes: &[u8], name: &[u8]) -> Option<u32> {
    // e_ident: magic, ELFCLASS64, ELFDATA2LSB.
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let sections = Table {
        first: u64_at(bytes, 40)?,
        size: u16_at(bytes, 58)?.into(),
        count: u16_at(bytes, 60)?.into(),
    };
    let symbols = sections.entries().find(|entry| u32_at(bytes, entry + 4) == Some(SHT_DYNSYM))?;
    let strings = sections.entry(u32_at(bytes, symbols + 40)?.into())?;
    let (strings, strings_size) = (u64_at(bytes, strings + 24)?, u64_at(bytes, strings + 32)?);
    let table = Table {
        first: u64_at(bytes, symbols + 24)?,
        size: SYMBOL_SIZE,
        count: u64_at(bytes, symbols + 32)? / SYMBOL_SIZE,
    };
    let found = table.entries().find(|entry| {
        let offset = u32_at(bytes, *entry).map(u64::from).filter(|offset| *offset < strings_size);
        let text = offset.and_then(|offset| tail(bytes, strings.checked_add(offset)?));
        text.is_some_and(|text| text.starts_with(name) && text.get(name.len()) == Some(&0))
    })?;
    let address = u64_at(bytes, found.checked_add(8)?)?;
    u32_at(bytes, offset_of(bytes, address)?)
}

/// Where in the file lies what is loaded to an address.
fn offset_of(bytes: &[u8], address: u64) -> Option<u64> {
    let segments = Table {
        first: u64_at(bytes, 32)?,
        size: u16_at(bytes, 54)?.into(),
        count: u16_at(bytes, 56)?.into(),
    };
    segments.entries().find_map(|entry| {
        let (offset, start) = (u64_at(bytes, entry + 8)?, u64_at(bytes, entry + 16)?);
        let inside = address.checked_sub(start)?;
        let is_here = u32_at(bytes, entry) == Some(PT_LOAD) && inside < u64_at(bytes, entry + 32)?;
        is_here.then(|| offset.checked_add(inside)).flatten()
    })
}

/// Entries of one size, one after the other.
struct Table {
    first: u64,
    size: u64,
    count: u64,
}

impl Table {
    fn entry(&self, index: u64) -> Option<u64> {
        let entry = self.first.checked_add(self.size.checked_mul(index)?)?;
        // Fields are added to it without a check.
        (index < self.count && entry < u64::MAX - SECTION_SIZE).then_some(entry)
    }

    fn entries(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.count.min(MAX_ENTRIES)).map_while(|index| self.entry(index))
    }
}

fn tail(bytes: &[u8], offset: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(offset).ok()?..)
}

fn at<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    tail(bytes, offset)?.first_chunk().copied()
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
pub(crate) mod tests {
    use super::*;

    /// The least file that has these dynamic symbols.
    pub(crate) fn library(symbols: &[(&str, u32)]) -> Vec<u8> {
        const LOADED: u64 = 0x1_0000;
        let mut strings = vec![0u8];
        let mut table = vec![0u8; 24];
        let mut values = Vec::new();
        // Header, one program header, three section headers, values.
        let first_value = 64 + 56 + 3 * 64;
        for (name, value) in symbols {
            let mut entry = vec![0u8; 24];
            entry[..4].copy_from_slice(&u32::try_from(strings.len()).unwrap().to_le_bytes());
            entry[8..16].copy_from_slice(&(LOADED + first_value + values.len() as u64).to_le_bytes());
            table.extend(entry);
            strings.extend(name.bytes().chain([0]));
            values.extend(value.to_le_bytes());
        }
        let at_table = first_value + values.len() as u64;
        let at_strings = at_table + table.len() as u64;
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[40..48].copy_from_slice(&120u64.to_le_bytes());
        for (place, value) in [(54, 56u16), (56, 1), (58, 64), (60, 3)] {
            file[place..place + 2].copy_from_slice(&value.to_le_bytes());
        }
        let mut segment = vec![0u8; 56];
        segment[0] = 1;
        segment[16..24].copy_from_slice(&LOADED.to_le_bytes());
        segment[32..40].copy_from_slice(&at_table.to_le_bytes());
        file.extend(segment);
        for (kind, offset, size, link) in [
            (0u32, 0u64, 0usize, 0u32),
            (SHT_DYNSYM, at_table, table.len(), 2),
            (3, at_strings, strings.len(), 0),
        ] {
            let mut section = vec![0u8; 64];
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&offset.to_le_bytes());
            section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            section[40..44].copy_from_slice(&link.to_le_bytes());
            file.extend(section);
        }
        [file, values, table, strings].concat()
    }

    #[test]
    fn a_plugin_says_for_which_slurm_it_is() {
        let file = library(&[
            ("plugin_version_of_another", 1),
            ("plugin_version", 0x16_0508),
            ("situla_protocol", 7),
        ]);
        let slurm = Version { major: 22, minor: 5, micro: 8 };
        assert_eq!(facts(&file), Some(PluginFacts { slurm, protocol: 7 }));
        assert_eq!(
            facts(&library(&[("plugin_version", 0x16_0508)])),
            Some(PluginFacts { slurm, protocol: 0 })
        );
        assert_eq!(facts(&library(&[("plugin_type", 1)])), None);
    }

    #[test]
    fn other_bytes_are_no_plugin() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01", &[0; 4096]] {
            assert_eq!(facts(bytes), None);
        }
        // This program is an ELF file, and no plugin.
        assert_eq!(facts(&std::fs::read("/proc/self/exe").unwrap()), None);
    }

    #[test]
    fn changed_and_cut_files_are_read_without_harm() {
        let file = library(&[("plugin_version", 0x16_0508)]);
        for length in 0..file.len() {
            let _ = facts(&file[..length]);
        }
        for place in 0..file.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = file.clone();
                changed[place] = value;
                let _ = facts(&changed);
                changed[place..(place + 8).min(file.len())].fill(value);
                let _ = facts(&changed);
            }
        }
    }
}
