//! `situla sif` and `apptainer sif`: the objects in a SIF file.
//!
//! Options have Apptainer's names and numbers; beside the numbers there are names.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use situla_image::sif::{
    Arch, DataType, FsType, HashType, Kind, Link, MessageFormat, MessageType, NewObject, PartType, SbomFormat,
};
use situla_image::{
    SifAddition, SifDescription, SifFileError, SifObjectInfo, add_sif_object, delete_sif_object,
    describe_sif, dump_sif_object,
};

use crate::command_error::CommandError;
use crate::output::{data, harmless};

/// Version of what `--json` prints here.
const SCHEMA: u32 = 1;
/// Apptainer's numbers for types of objects begin with 1; those of the format here.
const FIRST_DATA_TYPE: i32 = 0x4001;
/// Bytes of a PGP fingerprint.
const FINGERPRINT_LEN: usize = 20;

/// List, add, delete and dump the objects in a SIF file.
#[derive(Debug, Subcommand)]
pub(crate) enum SifCommand {
    /// Add an object
    Add(AddArgs),
    /// Delete an object
    Del(DelArgs),
    /// Write an object to standard output
    Dump(DumpArgs),
    /// Show the header
    Header(FileArgs),
    /// List the objects
    List(FileArgs),
}

/// Add an object to a SIF file.
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// Type: 1 or deffile, 2 env, 3 labels, 4 partition, 5 signature, 6 json, 7 generic, 8 crypto-message, 9 sbom,
    /// 10 oci-index, 11 oci-blob
    #[arg(long, value_name = "TYPE", value_parser = parse_data_type)]
    datatype: DataType,
    /// Role of a partition: 1 or system, 2 primary, 3 data, 4 overlay
    #[arg(long, value_name = "ROLE", value_parser = parse_part)]
    parttype: Option<PartType>,
    /// File system of a partition: 1 or squashfs, 2 ext3, 3 archive, 4 raw, 5 luks, 6 gocryptfs
    #[arg(long, value_name = "FS", value_parser = parse_fs)]
    partfs: Option<FsType>,
    /// Architecture of a partition: a name such as amd64, or its number: 1 386, 2 amd64, 3 arm, 4 arm64, 5 ppc64, 6
    /// ppc64le, 7 mips, 8 mipsle, 9 mips64, 10 mips64le, 11 s390x, 12 riscv64, 13 loong64
    #[arg(long, value_name = "ARCH", value_parser = parse_arch)]
    partarch: Option<Arch>,
    /// Hash of a signature: 1 or sha256, 2 sha384, 3 sha512, 4 blake2s, 5 blake2b
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    signhash: Option<HashType>,
    /// Fingerprint of the key of a signature, 40 hexadecimal digits
    #[arg(long, value_name = "FINGERPRINT", value_parser = parse_fingerprint)]
    signentity: Option<[u8; FINGERPRINT_LEN]>,
    /// Format of a bill of materials: cyclonedx-json, cyclonedx-xml, github-json, spdx-json, spdx-rdf, spdx-tag-value,
    /// spdx-yaml or syft-json
    #[arg(long, value_name = "FORMAT", value_parser = parse_sbom)]
    sbomformat: Option<SbomFormat>,
    /// Group; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    groupid: u32,
    /// Object that this one belongs to; 0 for none
    #[arg(long, value_name = "ID", default_value_t = 0)]
    link: u32,
    /// Alignment in bytes [default: 4096 for a partition, else none]
    #[arg(long, value_name = "BYTES")]
    alignment: Option<u64>,
    /// Name of the object [default: that of the file]
    #[arg(long, value_name = "NAME")]
    filename: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The SIF file
    #[arg(value_name = "SIF")]
    sif: PathBuf,
    /// The file to put into it
    #[arg(value_name = "FILE")]
    content: PathBuf,
}

/// Delete an object of a SIF file.
#[derive(Args, Debug)]
pub(crate) struct DelArgs {
    /// Overwrite the object with zeros where its room is not given back
    #[arg(long)]
    zero: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Id of the object
    #[arg(value_name = "ID")]
    id: u32,
    /// The SIF file
    #[arg(value_name = "SIF")]
    sif: PathBuf,
}

/// Write an object of a SIF file to standard output.
#[derive(Args, Debug)]
pub(crate) struct DumpArgs {
    /// Id of the object
    #[arg(value_name = "ID")]
    id: u32,
    /// The SIF file
    #[arg(value_name = "SIF")]
    sif: PathBuf,
}

/// Look at a SIF file.
#[derive(Args, Debug)]
pub(crate) struct FileArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The SIF file
    #[arg(value_name = "SIF")]
    sif: PathBuf,
}

/// Runs one of the commands.
pub(crate) fn sif(command: SifCommand) -> Result<ExitCode, CommandError> {
    let json = match &command {
        SifCommand::Add(arguments) => arguments.json,
        SifCommand::Del(arguments) => arguments.json,
        SifCommand::Header(arguments) | SifCommand::List(arguments) => arguments.json,
        SifCommand::Dump(_) => false,
    };
    match run(command) {
        Err(error) if json => Ok(error.report_json()),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn run(command: SifCommand) -> Result<(), CommandError> {
    let failed = |error| CommandError::sif(&error);
    match command {
        SifCommand::Add(arguments) => {
            let kind = kind(&arguments)?;
            let AddArgs { json, sif, content, groupid, link, alignment, filename, .. } = arguments;
            let object = NewObject {
                kind,
                name: filename.unwrap_or_default(),
                group: Some(groupid).filter(|group| *group != 0),
                link: if link == 0 { Link::None } else { Link::Object(link) },
                alignment,
            };
            let added = add_sif_object(&sif, SifAddition { content: &content, object }).map_err(failed)?;
            told(json, &added, || format!("object {} was added\n", added.id))
        }
        SifCommand::Del(arguments) => {
            let deleted = delete_sif_object(&arguments.sif, arguments.id, arguments.zero).map_err(failed)?;
            told(arguments.json, &deleted, || format!("object {} was deleted\n", deleted.id))
        }
        SifCommand::Dump(arguments) => {
            match dump_sif_object(&arguments.sif, arguments.id, &mut std::io::stdout().lock()) {
                // A reader that has gone is no error.
                Err(SifFileError::Dump(source)) if source.kind() == ErrorKind::BrokenPipe => Ok(()),
                Err(error) => Err(CommandError::sif(&error)),
                Ok(_) => Ok(()),
            }
        }
        SifCommand::Header(arguments) => {
            let found = describe_sif(&arguments.sif).map_err(failed)?;
            if !arguments.json {
                return data(&harmless(&header(&found)));
            }
            let mut value = serde_json::to_value(&found).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                // What `list` is for.
                fields.remove("objects");
                fields.insert("schema".to_owned(), SCHEMA.into());
            }
            data(&format!("{value}\n"))
        }
        SifCommand::List(arguments) => {
            let found = describe_sif(&arguments.sif).map_err(failed)?;
            if arguments.json {
                return data(&format!("{}\n", json!({ "schema": SCHEMA, "objects": found.objects })));
            }
            data(&harmless(&list(&found.objects)))
        }
    }
}

fn told(json: bool, object: &SifObjectInfo, text: impl FnOnce() -> String) -> Result<(), CommandError> {
    if json { data(&format!("{}\n", json!({ "schema": SCHEMA, "object": object }))) } else { data(&text()) }
}

/// What is added, from the options that its type needs. Options of other types are mistakes.
fn kind(arguments: &AddArgs) -> Result<Kind, CommandError> {
    let AddArgs { datatype, parttype, partfs, partarch, signhash, signentity, sbomformat, .. } = arguments;
    let given = [
        ("--parttype", parttype.is_some(), DataType::Partition),
        ("--partfs", partfs.is_some(), DataType::Partition),
        ("--partarch", partarch.is_some(), DataType::Partition),
        ("--signhash", signhash.is_some(), DataType::Signature),
        ("--signentity", signentity.is_some(), DataType::Signature),
        ("--sbomformat", sbomformat.is_some(), DataType::Sbom),
    ];
    if let Some((name, ..)) = given.iter().find(|(_, given, of)| *given && of != datatype) {
        let message = format!("{name} means nothing for an object of the type {}", datatype.short());
        return Err(CommandError::usage(message, "leave it out, or correct --datatype"));
    }
    let missing = |names: &str| {
        CommandError::usage(format!("an object of the type {} needs {names}", datatype.short()), "add them")
    };
    Ok(match datatype {
        DataType::Partition => match (*parttype, *partfs, *partarch) {
            (Some(part), Some(fs), Some(arch)) => Kind::Partition { fs, part, arch },
            _ => return Err(missing("--parttype, --partfs and --partarch")),
        },
        DataType::Signature => match (*signhash, *signentity) {
            (Some(hash), Some(entity)) => Kind::Signature { hash, entity },
            _ => return Err(missing("--signhash and --signentity")),
        },
        DataType::Sbom => Kind::Sbom(sbomformat.ok_or_else(|| missing("--sbomformat"))?),
        DataType::CryptoMessage => {
            Kind::CryptoMessage { format: MessageFormat::Unknown(0), message: MessageType::Unknown(0) }
        }
        // The digest is that of the content, which is read later.
        DataType::OciRootIndex => Kind::OciRootIndex(String::new()),
        DataType::OciBlob => Kind::OciBlob(String::new()),
        other => Kind::Other(*other),
    })
}

/// The objects in Apptainer's columns, which scripts take apart.
fn list(objects: &[SifObjectInfo]) -> String {
    let line = format!("{}\n", "-".repeat(78));
    let mut text = line.clone();
    text.push_str("ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE\n");
    text.push_str(&line);
    for object in objects {
        let group = object.group.map_or_else(|| "NONE".to_owned(), |group| group.to_string());
        let link = match (object.linked_object, object.linked_group) {
            (Some(id), _) => id.to_string(),
            (None, Some(group)) => format!("{group:<3} (G)"),
            (None, None) => "NONE".to_owned(),
        };
        let position = format!("{}-{}", object.offset, object.offset.saturating_add(object.bytes));
        let row = format!("{:<5}|{group:<8}|{link:<8}|{position:<26}|{}\n", object.id, object.listed);
        text.push_str(&row);
    }
    text
}

/// The header in Apptainer's words, which scripts take apart. What is not set has no line.
fn header(found: &SifDescription) -> String {
    let size = |bytes: u64| {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = (0..UNITS.len() - 1).find(|unit| bytes >> (10 * unit) < 1024).unwrap_or(UNITS.len() - 1);
        format!("{} {}", bytes >> (10 * unit), UNITS[unit])
    };
    let is_set = |id: &&String| id.chars().any(|digit| !matches!(digit, '0' | '-'));
    let rows = [
        ("Launch Script:", Some(found.launch.clone())),
        ("Version:", Some("01".to_owned())),
        ("Primary Architecture:", Some(found.architecture.to_owned())),
        ("ID:", Some(&found.id).filter(is_set).cloned()),
        ("Created At:", found.created.map(|time| utc(Some(time)))),
        ("Modified At:", found.modified.map(|time| utc(Some(time)))),
        ("Descriptors Free:", Some(found.descriptors_free.to_string())),
        ("Descriptors Total:", Some(found.descriptors.to_string())),
        ("Descriptors Offset:", Some(found.descriptors_offset.to_string())),
        ("Descriptors Size:", Some(size(found.descriptors_bytes))),
        ("Data Offset:", Some(found.data_offset.to_string())),
        ("Data Size:", Some(size(found.data_bytes))),
    ];
    let rows = rows.into_iter().filter_map(|(name, value)| Some(format!("{name:<22}{}\n", value?)));
    rows.collect()
}

/// A time as Go prints it, whose zero is the first day of year 1.
fn utc(time: Option<i64>) -> String {
    const DAY: i64 = 86_400;
    let time = time.unwrap_or(-62_135_596_800);
    let (days, second) = (time.div_euclid(DAY), time.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// Year, month and day of a number of days since 1970, by the calendar that all dates are written in now. Years are
/// counted from March, so that the leap day is the last of its year.
fn date(days: i64) -> (i64, i64, i64) {
    /// Days of 400 years, after which the calendar repeats.
    const CYCLE: i64 = 146_097;
    /// Days from 1 March of year 0 to 1 January 1970.
    const TO_1970: i64 = 719_468;
    let days = days.saturating_add(TO_1970);
    let (cycle, in_cycle) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    // Leap days that passed: one each four years, none each hundred, one each four hundred.
    let year = (in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year + year / 4 - year / 100);
    // From March, months have 31, 30, 31, 30, 31 days, and again.
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (cycle * 400 + year + i64::from(month <= 2), month, day)
}

/// Reads a number between 1 and `known`, or a name.
fn coded<T>(
    text: &str,
    known: usize,
    by_number: impl FnOnce(i32) -> T,
    by_name: impl FnOnce(&str) -> Option<T>,
) -> Result<T, String> {
    match text.parse::<usize>() {
        Ok(number) if (1..=known).contains(&number) => {
            i32::try_from(number).map(by_number).map_err(|error| error.to_string())
        }
        Ok(_) => Err(format!("must be between 1 and {known}, or a name")),
        Err(_) => by_name(text).ok_or_else(|| "no such name".to_owned()),
    }
}

fn parse_data_type(text: &str) -> Result<DataType, String> {
    let by_number = |number: i32| DataType::from_code(FIRST_DATA_TYPE - 1 + number);
    coded(text, DataType::KNOWN.len(), by_number, DataType::from_short)
}

fn parse_part(text: &str) -> Result<PartType, String> {
    coded(text, PartType::KNOWN.len(), PartType::from_code, PartType::from_short)
}

fn parse_fs(text: &str) -> Result<FsType, String> {
    coded(text, FsType::KNOWN.len(), FsType::from_code, FsType::from_short)
}

fn parse_hash(text: &str) -> Result<HashType, String> {
    coded(text, HashType::KNOWN.len(), HashType::from_code, HashType::from_short)
}

fn parse_sbom(text: &str) -> Result<SbomFormat, String> {
    coded(text, SbomFormat::KNOWN.len(), SbomFormat::from_code, SbomFormat::from_short)
}

fn parse_arch(text: &str) -> Result<Arch, String> {
    let nth = |number: i32| {
        let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
        Arch::go_names().nth(index).map_or(Arch::UNKNOWN, Arch::from_go_name)
    };
    let by_name = |name: &str| Some(Arch::from_go_name(name)).filter(|arch| *arch != Arch::UNKNOWN);
    // Some partitions, such as overlays, are for every machine.
    if text == "unknown" { Ok(Arch::UNKNOWN) } else { coded(text, Arch::go_names().count(), nth, by_name) }
}

fn parse_fingerprint(text: &str) -> Result<[u8; FINGERPRINT_LEN], String> {
    let bad = || format!("not a fingerprint of {} hexadecimal digits", 2 * FINGERPRINT_LEN);
    if text.len() != 2 * FINGERPRINT_LEN || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut bytes = [0; FINGERPRINT_LEN];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: SifCommand,
    }

    fn add(line: &str) -> Result<Kind, String> {
        let words = ["sif", "add", "a.sif", "f"].into_iter().chain(line.split(' '));
        match Line::try_parse_from(words).map_err(|error| error.to_string())?.command {
            SifCommand::Add(arguments) => kind(&arguments).map_err(|error| error.to_json().to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn types_are_numbers_or_names() {
        let partition = Kind::Partition {
            fs: FsType::Squashfs,
            part: PartType::System,
            arch: Arch::from_go_name("arm64"),
        };
        let entity = "433FE984155206BD962725E20E8713472A879943";
        let mut bytes = [0x43; FINGERPRINT_LEN];
        bytes[1..].copy_from_slice(&parse_fingerprint(entity).unwrap()[1..]);
        for (line, want) in [
            ("--datatype 1", Kind::Other(DataType::Deffile)),
            ("--datatype json", Kind::Other(DataType::GenericJson)),
            ("--datatype 11", Kind::OciBlob(String::new())),
            ("--datatype 4 --parttype 1 --partfs 1 --partarch 4", partition.clone()),
            ("--datatype partition --parttype system --partfs squashfs --partarch arm64", partition),
            ("--datatype 9 --sbomformat spdx-rdf", Kind::Sbom(SbomFormat::SpdxRdf)),
            (
                &format!("--datatype 5 --signhash 2 --signentity {entity}"),
                Kind::Signature { hash: HashType::Sha384, entity: bytes },
            ),
        ] {
            assert_eq!(add(line), Ok(want), "{line}");
        }
        for (line, told) in [
            ("--datatype 0", "between 1 and 11"),
            ("--datatype 12", "between 1 and 11"),
            ("--datatype wine", "no such name"),
            ("--groupid 1", "--datatype"),
            ("--datatype 4 --parttype 1", "--partarch"),
            ("--datatype 4 --parttype 1 --partfs 1 --partarch vax", "no such name"),
            ("--datatype 5 --signhash 1", "--signentity"),
            ("--datatype 5 --signhash 1 --signentity 12", "40 hexadecimal digits"),
            ("--datatype 1 --partfs 1", "--partfs means nothing"),
            ("--datatype 9", "--sbomformat"),
        ] {
            let error = add(line).unwrap_err();
            assert!(error.contains(told), "{line}: {error}");
        }
    }

    #[test]
    fn times_are_written_as_go_does() {
        for (time, text) in [
            (None, "0001-01-01 00:00:00 +0000 UTC"),
            (Some(0), "1970-01-01 00:00:00 +0000 UTC"),
            (Some(1_590_175_859), "2020-05-22 19:30:59 +0000 UTC"),
            (Some(951_782_399), "2000-02-28 23:59:59 +0000 UTC"),
            (Some(951_782_400), "2000-02-29 00:00:00 +0000 UTC"),
            (Some(951_868_800), "2000-03-01 00:00:00 +0000 UTC"),
            (Some(4_107_542_400), "2100-03-01 00:00:00 +0000 UTC"),
            (Some(-1), "1969-12-31 23:59:59 +0000 UTC"),
        ] {
            assert_eq!(utc(time), text);
        }
        // No time that a file can hold is too much.
        for time in [i64::MIN, i64::MAX] {
            assert!(utc(Some(time)).ends_with("UTC"));
        }
    }

    #[test]
    fn listings_have_the_columns_that_scripts_know() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sif");
        let options = situla_image::sif::SifOptions { arch: "amd64".to_owned(), ..Default::default() };
        let file = std::fs::File::create(&path).unwrap();
        let writer = situla_image::sif::SifWriter::new(file, options).unwrap();
        writer.write_partition(&mut &[0u8; 4096][..]).unwrap();
        let object = NewObject {
            kind: Kind::Signature { hash: HashType::Sha256, entity: [0; FINGERPRINT_LEN] },
            name: String::new(),
            group: None,
            link: Link::Group(1),
            alignment: None,
        };
        let content = dir.path().join("s");
        std::fs::write(&content, [0; 1048]).unwrap();
        add_sif_object(&path, SifAddition { content: &content, object }).unwrap();
        let found = describe_sif(&path).unwrap();
        let want = "\
------------------------------------------------------------------------------
ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE
------------------------------------------------------------------------------
1    |1       |NONE    |32768-36864               |FS (Squashfs/*System/amd64)
2    |NONE    |1   (G) |36864-37912               |Signature (SHA-256)
";
        assert_eq!(list(&found.objects), want);
        let want = "\
Launch Script:        #!/usr/bin/env run-singularity
Version:              01
Primary Architecture: amd64
Descriptors Free:     46
Descriptors Total:    48
Descriptors Offset:   4096
Descriptors Size:     27 KiB
Data Offset:          32176
Data Size:            5 KiB
";
        assert_eq!(header(&found), want);
    }
}
