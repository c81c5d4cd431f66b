//! The least that turning an OCI image into one verified SquashFS can cost: `floor LAYOUT TREE LEVEL` does the
//! arithmetic of it and nothing else, on one processor.
//!
//! SHA-256 of every layer as it is stored, inflating it, SHA-256 of what comes out (OCI image specification,
//! `rootfs.diff_ids`), zstd of the files of the final tree in blocks of 128 KiB, SHA-256 of what that gives. No tar is
//! read, nothing is merged, no tables are made and nothing is written. `TREE` is the image unpacked; a file with several
//! names counts once, files of equal content count twice.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The block size that is usual for SquashFS, and the writer's default.
const BLOCK: usize = 128 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [layout, tree, level] = args.as_slice() else { return Err("usage: floor LAYOUT TREE LEVEL".into()) };
    let mut spent = Spent::default();
    for (path, media_type) in layers(Path::new(layout))? {
        layer(&path, &media_type, &mut spent)?;
    }
    compress(Path::new(tree), level.parse()?, &mut spent)?;
    report(&spent);
    Ok(())
}

#[derive(Default)]
struct Spent {
    hash_stored: Duration,
    inflate: Duration,
    hash_plain: Duration,
    zstd: Duration,
    hash_output: Duration,
    stored: u64,
    plain: u64,
    output: u64,
}

#[expect(clippy::print_stdout, reason = "an example shows its result")]
fn report(spent: &Spent) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "sha256 of layers {:.1} ms ({} bytes), inflate {:.1} ms, sha256 of tars {:.1} ms ({} bytes), zstd {:.1} ms, \
         sha256 of output {:.1} ms ({} bytes)",
        ms(spent.hash_stored),
        spent.stored,
        ms(spent.inflate),
        ms(spent.hash_plain),
        spent.plain,
        ms(spent.zstd),
        ms(spent.hash_output),
        spent.output,
    );
}

/// The blobs of the layers of a layout's only image, with their media types.
fn layers(layout: &Path) -> Result<Vec<(PathBuf, String)>, Box<dyn Error>> {
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let parse =
        |path: &Path| -> Result<Value, Box<dyn Error>> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let index = parse(&layout.join("index.json"))?;
    let top = index["manifests"][0]["digest"].as_str().ok_or("no manifest")?;
    let manifest = parse(&blob(top))?;
    let text =
        |value: &Value| value.as_str().map(str::to_owned).ok_or("a layer without digest or media type");
    let layers = manifest["layers"].as_array().ok_or("no layers")?;
    layers.iter().map(|layer| Ok((blob(&text(&layer["digest"])?), text(&layer["mediaType"])?))).collect()
}

/// Adds the time that `work` takes to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    *total += began.elapsed();
    done
}

fn layer(path: &Path, media_type: &str, spent: &mut Spent) -> Result<(), Box<dyn Error>> {
    let stored = fs::read(path)?;
    spent.stored += stored.len() as u64;
    timed(&mut spent.hash_stored, || Sha256::digest(&stored));
    let mut plain: Box<dyn Read + '_> = match media_type.rsplit(['+', '.']).next() {
        Some("gzip") => Box::new(flate2::read::MultiGzDecoder::new(stored.as_slice())),
        Some("zstd") => Box::new(zstd::Decoder::with_buffer(stored.as_slice())?),
        _ => Box::new(stored.as_slice()),
    };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = timed(&mut spent.inflate, || fill(&mut plain, &mut buffer))?;
        if read == 0 {
            return Ok(());
        }
        spent.plain += read as u64;
        timed(&mut spent.hash_plain, || hash.update(&buffer[..read]));
    }
}

fn compress(tree: &Path, level: i32, spent: &mut Spent) -> Result<(), Box<dyn Error>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    let mut hash = Sha256::new();
    let mut seen = BTreeSet::new();
    let mut directories = vec![tree.to_owned()];
    let mut output = Vec::with_capacity(2 * BLOCK);
    // Ends of files share blocks, as fragments do.
    let mut tail = Vec::new();
    let mut block = |bytes: &[u8], spent: &mut Spent| -> io::Result<()> {
        output.clear();
        let written = timed(&mut spent.zstd, || compressor.compress_to_buffer(bytes, &mut output))?;
        let stored = if written < bytes.len() { output.as_slice() } else { bytes };
        spent.output += stored.len() as u64;
        timed(&mut spent.hash_output, || hash.update(stored));
        Ok(())
    };
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && seen.insert(entry.metadata()?.ino()) {
                let mut file = File::open(entry.path())?;
                let mut buffer = vec![0; BLOCK];
                loop {
                    let read = fill(&mut file, &mut buffer)?;
                    if read < BLOCK {
                        tail.extend_from_slice(&buffer[..read]);
                        break;
                    }
                    // Zeros are a hole, and cost nothing.
                    if buffer.iter().any(|byte| *byte != 0) {
                        block(&buffer, spent)?;
                    }
                }
                if tail.len() >= BLOCK {
                    let rest = tail.split_off(BLOCK);
                    block(&tail, spent)?;
                    tail = rest;
                }
            }
        }
    }
    block(&tail, spent)?;
    Ok(())
}

/// Reads until the buffer is full or there is no more.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
