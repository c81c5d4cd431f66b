//! Whether an image has the same bytes whatever the machine has: `same_bytes LAYOUT N...` converts the image of a layout with
//! each number of threads, and with as many fetchers, and fails where one gives another file.
//!
//! For images that are too large for a unit test, and for more threads than the machine has processors, which no command
//! line asks for.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use situla_image::{ConvertOptions, LayoutImage, OutputFormat, Which, convert_image};
use situla_oci::Platform;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let layout = args.next().ok_or("usage: same_bytes LAYOUT N...")?;
    let source = LayoutImage::open(Path::new(&layout), &Which::Only)?;
    // Where there is room for an image that has none in memory.
    let out = PathBuf::from(format!("/var/tmp/same-bytes-{}.sqsh", std::process::id()));
    let mut first = None;
    for text in args {
        let n_threads: usize = text.to_string_lossy().parse()?;
        let began = Instant::now();
        let options =
            ConvertOptions { n_threads, n_fetchers: n_threads, overwrite: true, ..ConvertOptions::default() };
        let converted = convert_image(&source, &Platform::native(), &out, OutputFormat::Sqsh, &options, &());
        // Its digest is known by now, and its bytes are many.
        let _ = std::fs::remove_file(&out);
        let digest = converted?.rootfs_digest;
        writeln!(std::io::stdout(), "{n_threads} threads: {digest}, {:.0?}", began.elapsed())?;
        if *first.get_or_insert_with(|| digest.clone()) != digest {
            return Err(format!("with {n_threads} threads it is another file").into());
        }
    }
    first.map(drop).ok_or_else(|| "no number of threads".into())
}
