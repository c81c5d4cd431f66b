//! Layers that are made to cost time, memory or disk: each ends with an error that says why, or in a tree, soon.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use situla_image::{
    Content, Entry, EntryKind, FileSink, FlattenError, FlattenOptions, ImageParts, LayerSource, Ledger,
    Level, MemoryPlan, MemorySink, MergeError, Merger, Meta, Resources, TarError, TarReader, flatten,
};
use situla_oci::{Descriptor, Digest, ImageConfig, Manifest};

use crate::tar_builder::TarBuilder;
use crate::tools::zstd;

/// Longest time that any case here may take. A case with an algorithm that is quadratic takes minutes.
const PATIENCE: Duration = Duration::from_secs(20);

fn t() -> TarBuilder {
    TarBuilder::new()
}

fn timed<T>(what: &str, case: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = case();
    assert!(began.elapsed() < PATIENCE, "{what} took {:?}", began.elapsed());
    result
}

/// Entries of one level without the bytes of an archive around them.
fn entry(path: impl Into<Vec<u8>>, kind: EntryKind) -> Entry {
    Entry { path: path.into(), kind, meta: Meta::root_owned(0o755) }
}

/// Merges entries given by level, the uppermost first.
fn merge_entries(ledger: &Ledger, levels: impl IntoIterator<Item = Vec<Entry>>) -> Result<usize, MergeError> {
    let mut sink = MemorySink::default();
    let levels: Vec<_> = levels.into_iter().collect();
    let top = u32::try_from(levels.len()).expect("few levels");
    let mut merger = Merger::new(&mut sink, ledger, Level(top));
    for (entries, level) in levels.into_iter().zip((1..=top).rev()) {
        merger.begin_layer(Level(level));
        for entry in entries {
            merger.entry(entry, &mut io::empty())?;
        }
        merger.end_layer()?;
    }
    merger.finish().map(|tree| tree.inodes.len())
}

fn link(path: String, target: String) -> Entry {
    entry(path, EntryKind::HardLink { target: target.into_bytes() })
}

fn symlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Entry {
    entry(path, EntryKind::Symlink { target: target.into() })
}

/// A ledger with more than a test machine has: where time is tested, memory is not to end it.
fn generous() -> Ledger {
    Ledger::new(MemoryPlan { growing: 1 << 40, ..MemoryPlan::default() })
}

#[test]
fn chains_of_hidden_links_take_no_longer_than_links() {
    const N: usize = 60_000;
    let hide_all = || vec![entry("hidden/.wh..wh..opq", EntryKind::File { size: 0 })];
    let file = || entry("hidden/0", EntryKind::Symlink { target: b"x".to_vec() });
    let visible = |of: usize| (0..N).map(move |n| link(format!("v/{n}"), format!("hidden/{of}")));
    // Each link names the one before, then all visible ones name the last.
    let mut forward = vec![file()];
    forward.extend((1..N).map(|n| link(format!("hidden/{n}"), format!("hidden/{}", n - 1))));
    forward.extend(visible(N - 1));
    // Each link names the one after, which is not there yet.
    let mut backward: Vec<Entry> =
        (1..N).map(|n| link(format!("hidden/{n}"), format!("hidden/{}", n + 1))).collect();
    backward.extend(visible(1));
    // A circle.
    let mut circle: Vec<Entry> =
        (0..N).map(|n| link(format!("hidden/{n}"), format!("hidden/{}", (n + 1) % N))).collect();
    circle.extend(visible(0));
    for (what, entries) in [("forward", forward), ("backward", backward), ("circle", circle)] {
        let result = timed(what, || merge_entries(&generous(), [hide_all(), entries]));
        // What they lead to is hidden or nothing, and in no lower layer.
        assert!(matches!(result, Err(MergeError::MissingLinkTarget { .. })), "{what}: {result:?}");
    }
}

#[test]
fn links_that_name_each_other_are_refused() {
    for n in [2usize, 3, 7] {
        let circle = (0..n).map(|i| link(format!("{i}"), format!("{}", (i + 1) % n))).collect();
        let result = timed("a circle", || merge_entries(&generous(), [circle]));
        assert!(matches!(result, Err(MergeError::MissingLinkTarget { .. })), "{n}: {result:?}");
    }
}

#[test]
fn links_wanted_from_below_are_not_looked_at_for_every_layer() {
    const N: usize = 20_000;
    let wanted = (0..N).map(|n| link(format!("v/{n}"), format!("{}x/{n}", "d/".repeat(200)))).collect();
    let mut levels = vec![wanted];
    levels.extend((0..1000).map(|n| vec![entry(format!("other/.wh.{n}"), EntryKind::File { size: 0 })]));
    let result = timed("1000 layers", || merge_entries(&generous(), levels));
    assert!(matches!(result, Err(MergeError::MissingLinkTarget { .. })), "{result:?}");
}

#[test]
fn directories_moved_by_links_are_found_at_once() {
    const N: usize = 20_000;
    // The upper layer has written through all of these; each is moved when the link turns up.
    let above = (0..N).map(|n| entry(format!("a/l{n}/x"), EntryKind::Fifo)).collect();
    let below = (0..N).map(|n| symlink(format!("a/l{n}"), format!("../b/{n}"))).collect();
    let made = timed("moves", || merge_entries(&generous(), [above, below])).unwrap();
    assert_eq!(made, 2 * N);
}

#[test]
fn long_ways_through_links_end() {
    // Forty links, each with two thousand components, in every one of many short names.
    let mut entries = vec![entry("d", EntryKind::Directory)];
    for n in 0..39 {
        let target =
            format!("/{}{}", "d/../".repeat(800), if n == 0 { ".".into() } else { format!("l{}", n - 1) });
        entries.push(symlink(format!("l{n}"), target));
    }
    entries.extend((0..100_000).map(|n| entry(format!("l38/{n}"), EntryKind::Fifo)));
    let result = timed("detours", || merge_entries(&generous(), [entries]));
    assert!(matches!(result, Err(MergeError::TooManySymlinks(_))), "{result:?}");
}

/// Each layer puts the tree of the ones above it below nine hundred more directories.
#[test]
fn links_cannot_nest_directories_without_end() {
    let deep = |name: &str| format!("{name}/{}", "x/".repeat(900));
    let mut levels = vec![vec![entry(format!("{}f", deep("n0")), EntryKind::Fifo)]];
    for n in 1..200 {
        levels.push(vec![symlink(format!("n{}", n - 1), deep(&format!("n{n}")))]);
    }
    let result = timed("nesting", || merge_entries(&generous(), levels));
    assert!(matches!(result, Err(MergeError::TooDeep(_))), "{result:?}");
}

#[test]
fn deep_trees_are_made_or_refused() {
    for (depth, fits) in [(1000usize, true), (1100, false)] {
        let path = vec!["d"; depth].join("/");
        let result =
            timed("a deep tree", || merge_entries(&generous(), [vec![entry(path, EntryKind::Fifo)]]));
        match result {
            Ok(1) if fits => {}
            Err(MergeError::TooDeep(_)) if !fits => {}
            other => panic!("{depth}: {other:?}"),
        }
    }
}

#[test]
fn a_million_entries_fit_and_more_memory_is_not_taken() {
    let plan = Resources::plan(1, Some(512 << 20)).unwrap().memory;
    let ledger = Ledger::new(plan);
    let million = (0..1_000_000).map(|n| entry(format!("d{}/file-{n}", n / 1000), EntryKind::Fifo));
    let made = timed("a million", || merge_entries(&ledger, [million.collect()]));
    assert_eq!(made.unwrap(), 1_000_000);

    let small = Ledger::new(MemoryPlan { growing: 1 << 20, total: 96 << 20, ..plan });
    type Make = fn(usize) -> Entry;
    let kinds: [(&str, Make); 6] = [
        ("files", |n| entry(format!("{n}"), EntryKind::Fifo)),
        ("directories", |n| entry(format!("{n}"), EntryKind::Directory)),
        ("implicit directories", |n| entry(format!("{n}/a/b/c"), EntryKind::Fifo)),
        ("symbolic links", |n| symlink(format!("{n}"), "t".repeat(4000))),
        ("whiteouts", |n| entry(format!(".wh.{n}"), EntryKind::File { size: 0 })),
        ("hard links", |n| link(format!("{n}"), format!("elsewhere/{n}"))),
    ];
    for (what, make) in kinds {
        let ledger = Ledger::new(MemoryPlan { growing: 1 << 20, total: 96 << 20, ..plan });
        let error = merge_entries(&ledger, [(0..100_000).map(make).collect()]).unwrap_err();
        assert!(matches!(error, MergeError::Memory(_)), "{what}: {error:?}");
        assert!(error.to_string().contains("of a limit of 96 MiB"), "{what}: {error}");
    }
    let xattrs = (0..100).map(|n| {
        let mut entry = entry(format!("{n}"), EntryKind::Fifo);
        entry.meta.xattrs = vec![(b"user.a".to_vec(), vec![0; 60_000])];
        entry
    });
    let error = merge_entries(&small, [xattrs.collect()]).unwrap_err();
    assert!(matches!(error, MergeError::Memory(_)), "{error:?}");
    // What a layer hides is forgotten with it: as much as fits, many times.
    let hidden = |n: usize| vec![entry(format!("h/{}", "x".repeat(n)), EntryKind::File { size: 0 }); 1];
    let ledger = Ledger::new(MemoryPlan { growing: 100_000, ..plan });
    let mut levels = vec![vec![entry(".wh.h", EntryKind::File { size: 0 })]];
    levels.extend((0..1000).map(|n| hidden(n % 200 + 1)));
    assert_eq!(merge_entries(&ledger, levels).unwrap(), 0);
}

/// Counts what it gets.
#[derive(Debug, Default)]
struct Counter {
    written: u64,
    holes: u64,
}

impl FileSink for Counter {
    type File = ();
    type Error = std::convert::Infallible;

    fn begin(&mut self, _size: u64) -> Result<(), Self::Error> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<(), Self::Error> {
        self.holes += len;
        Ok(())
    }

    fn keeps(data: u64, holes: u64) -> u64 {
        (data + holes) >> 14
    }

    fn finish(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// A file that stores ten bytes at `at` and says that it is so long.
fn sparse(name: &str, at: u64, size: u64) -> TarBuilder {
    t().pax("GNU.sparse.size", size.to_string().as_bytes())
        .pax("GNU.sparse.map", format!("{at},10").as_bytes())
        .file(name, b"0123456789")
}

#[test]
fn announced_holes_are_not_written() {
    let size = 1u64 << 40;
    let tar = sparse("hole", size / 2, size).build();
    let ledger = Ledger::default();
    let mut sink = Counter::default();
    let mut merger = Merger::new(&mut sink, &ledger, Level(1));
    timed("a TiB", || merger.layer(Level(1), &mut TarReader::new(tar.as_slice()))).unwrap();
    merger.finish().unwrap();
    assert_eq!((sink.written, sink.holes), (10, size - 10));
    // The words for its blocks would not fit in memory.
    let tar = sparse("hole", 0, 1 << 50).build();
    let ledger = Ledger::default();
    let mut sink = Counter::default();
    let mut merger = Merger::new(&mut sink, &ledger, Level(1));
    let error = merger.layer(Level(1), &mut TarReader::new(tar.as_slice())).unwrap_err();
    assert!(matches!(error, MergeError::Memory(_)), "{error:?}");
    let tar = sparse("hole", 0, (1 << 50) + 1).build();
    let error = TarReader::new(tar.as_slice()).next_entry().unwrap_err();
    assert!(matches!(error, TarError::Malformed("size")), "{error:?}");
}

#[test]
fn holes_of_a_file_here_are_asked_of_the_file_system() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 32 << 20).unwrap();
    let mut holes = 0;
    let mut read = Vec::new();
    loop {
        holes += file.skip_hole().unwrap();
        let mut buffer = vec![0; 4096];
        let n = file.read(&mut buffer).unwrap();
        read.extend_from_slice(&buffer[..n]);
        if n == 0 {
            break;
        }
    }
    assert_eq!(holes + read.len() as u64, 64 << 20, "everything is passed once");
    // A file system without holes gives all of it as data.
    if holes > 0 {
        assert!(read.len() < 1 << 20 && read.windows(4).any(|window| window == b"data"), "{}", read.len());
    }
}

/// Layers in memory, some of which are slow.
struct Layers<'a> {
    blobs: Vec<Vec<u8>>,
    /// Makes the reader of a blob.
    open: &'a (dyn Fn(usize, Vec<u8>) -> Box<dyn Read + Send> + Sync),
}

impl LayerSource for Layers<'_> {
    fn open_layer(&self, what: &str, _: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let number: usize = what.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("layer N of M");
        Ok((self.open)(number - 1, self.blobs[number - 1].clone()))
    }
}

fn parts(layers: &[(Vec<u8>, Vec<u8>)]) -> ImageParts {
    let descriptor = |bytes: &[u8], media_type: &str| {
        format!(
            "{{\"mediaType\":\"{media_type}\",\"digest\":\"{}\",\"size\":{}}}",
            Digest::sha256(bytes),
            bytes.len()
        )
    };
    let diff_ids: Vec<String> =
        layers.iter().map(|(tar, _)| format!("\"{}\"", Digest::sha256(tar))).collect();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
        diff_ids.join(",")
    );
    let blobs: Vec<String> =
        layers.iter().map(|(_, blob)| descriptor(blob, "application/vnd.oci.image.layer.v1.tar")).collect();
    let manifest = format!(
        "{{\"schemaVersion\":2,\"config\":{},\"layers\":[{}]}}",
        descriptor(config.as_bytes(), "application/vnd.oci.image.config.v1+json"),
        blobs.join(",")
    );
    ImageParts {
        digest: Digest::sha256(manifest.as_bytes()),
        manifest: serde_json::from_str::<Manifest>(&manifest).expect("a manifest"),
        manifest_bytes: manifest.into_bytes(),
        config: ImageConfig::parse(config.as_bytes()).expect("a configuration"),
        config_bytes: config.into_bytes(),
    }
}

fn flatten_with(
    layers: &[(Vec<u8>, Vec<u8>)],
    options: FlattenOptions,
    open: &(dyn Fn(usize, Vec<u8>) -> Box<dyn Read + Send> + Sync),
) -> Result<u64, FlattenError> {
    let source = Layers { blobs: layers.iter().map(|(_, blob)| blob.clone()).collect(), open };
    let mut sink = Counter::default();
    flatten(&source, &parts(layers), &[], &[], &mut sink, options, &())?;
    Ok(sink.written)
}

fn at_once(_: usize, blob: Vec<u8>) -> Box<dyn Read + Send> {
    Box::new(io::Cursor::new(blob))
}

/// The top layer gives nothing before the others have stopped: what they have fetched until then is what waits in
/// memory.
#[test]
fn layers_that_wait_for_a_slow_one_share_their_room() {
    const LAYERS: usize = 40;
    const QUEUES: u64 = 4 << 20;
    let layer = |n: u8| {
        let tar = t().file(&format!("f{n}"), &vec![n; 3 << 20]).build();
        (tar.clone(), tar)
    };
    let layers: Vec<_> = (0..).map(layer).take(LAYERS).collect();
    let n_read = std::sync::Arc::new(AtomicU64::new(0));

    struct Counted(io::Cursor<Vec<u8>>, std::sync::Arc<AtomicU64>);
    impl Read for Counted {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(buf)?;
            self.1.fetch_add(n as u64, Ordering::SeqCst);
            Ok(n)
        }
    }
    /// Waits until the others have read nothing more for a while.
    struct Slow(io::Cursor<Vec<u8>>, std::sync::Arc<AtomicU64>, bool, std::sync::Arc<AtomicU64>);
    impl Read for Slow {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if !self.2 {
                let began = Instant::now();
                let mut last = (self.1.load(Ordering::SeqCst), Instant::now());
                while last.1.elapsed() < Duration::from_millis(300) && began.elapsed() < PATIENCE {
                    std::thread::yield_now();
                    let now = self.1.load(Ordering::SeqCst);
                    if now != last.0 {
                        last = (now, Instant::now());
                    }
                }
                self.2 = true;
                self.3.store(self.1.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            self.0.read(buf)
        }
    }
    let ahead = std::sync::Arc::new(AtomicU64::new(0));
    let open = |n: usize, blob: Vec<u8>| -> Box<dyn Read + Send> {
        let blob = io::Cursor::new(blob);
        if n == LAYERS - 1 {
            return Box::new(Slow(blob, n_read.clone(), false, ahead.clone()));
        }
        Box::new(Counted(blob, n_read.clone()))
    };
    let memory = MemoryPlan { queues: QUEUES, ..MemoryPlan::default() };
    let options = FlattenOptions { n_fetchers: 4, memory, ..FlattenOptions::default() };
    let written = timed("waiting", || flatten_with(&layers, options, &open)).unwrap();
    assert_eq!(written, (LAYERS as u64) * (3 << 20));
    let ahead = ahead.load(Ordering::SeqCst);
    // What is in work in each fetcher comes on top: a chunk, and what its reader holds.
    // On a busy machine they may have been taken for waiting while they were not, and have read less.
    assert!((1 << 20..QUEUES + 4 * (1 << 20)).contains(&ahead), "{ahead} bytes were read ahead");
}

#[test]
fn bombs_end_early() {
    let zeros = t().file("zeros", &vec![0; 64 << 20]).build();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    io::Write::write_all(&mut gzip, &zeros).unwrap();
    for blob in [gzip.finish().unwrap(), zstd(&zeros)] {
        assert!(blob.len() < zeros.len() / 200, "compressed to {}", blob.len());
        let layers = [(zeros.clone(), blob)];
        let options = FlattenOptions { always_taken: 8 << 20, ..FlattenOptions::default() };
        let error = timed("a bomb", || flatten_with(&layers, options, &at_once)).unwrap_err();
        let FlattenError::TooLarge { limit, .. } = error else { panic!("{error:?}") };
        assert!(limit < 64 << 20);
        assert!(error.to_string().contains(&limit.to_string()), "{error}");
        // All layers together count.
        let half = t().file("half", &vec![0; 6 << 20]).build();
        let two = [(half.clone(), zstd(&half)), (half.clone(), zstd(&half))];
        let error = flatten_with(&two, options, &at_once).unwrap_err();
        assert!(matches!(error, FlattenError::TooLarge { .. }), "{error:?}");
        assert_eq!(flatten_with(&two[..1], options, &at_once).unwrap(), 6 << 20);
    }
}

/// A frame with a window that is larger than what a decoder may have that works ahead.
fn with_window(content: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("a level");
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(log)).expect("a window");
    io::Write::write_all(&mut encoder, content).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

#[test]
fn large_windows_come_one_at_a_time_and_from_the_ledger() {
    let layer = |n: u8| {
        let tar = t().file(&format!("f{n}"), &vec![n; 5 << 20]).build();
        let blob = with_window(&tar, 26);
        (tar, blob)
    };
    let layers: Vec<_> = (0..6).map(layer).collect();
    let memory = MemoryPlan { small_window: 1 << 20, ..MemoryPlan::default() };
    let options = FlattenOptions { n_fetchers: 4, memory, ..FlattenOptions::default() };
    // With room for one of 64 MiB and not for two.
    let one = FlattenOptions { memory: MemoryPlan { growing: 100 << 20, ..memory }, ..options };
    assert_eq!(timed("windows", || flatten_with(&layers, one, &at_once)).unwrap(), 6 * (5 << 20));
    let none =
        FlattenOptions { memory: MemoryPlan { growing: 60 << 20, total: 80 << 20, ..memory }, ..options };
    let error = timed("windows", || flatten_with(&layers, none, &at_once)).unwrap_err();
    assert!(matches!(error, FlattenError::Memory { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("window") && cause.contains("80 MiB"), "{cause}");
    let tar = t().file("f", b"x").build();
    let huge = [(tar.clone(), with_window(&tar, 28))];
    let error = flatten_with(&huge, options, &at_once).unwrap_err();
    assert!(matches!(error, FlattenError::Decompress { .. }), "{error:?}");
}

/// A body that never ends is cut where the manifest says.
#[test]
fn endless_layers_end() {
    let tar = t().file("f", &[1; 100_000]).build();
    let layers = [(tar.clone(), tar)];
    let open = |_: usize, blob: Vec<u8>| -> Box<dyn Read + Send> {
        Box::new(io::Cursor::new(blob).chain(io::repeat(0)))
    };
    let error = timed("endless", || flatten_with(&layers, FlattenOptions::default(), &open)).unwrap_err();
    assert!(matches!(error, FlattenError::Verify(_)), "{error:?}");
}
