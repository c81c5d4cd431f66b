//! Packs a directory into an image: `squash DIRECTORY IMAGE [THREADS [LEVEL]]`. For measurements and
//! for comparing with mksquashfs; the product builds images through its own tree.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool for measuring, not part of the product"
)]

#[path = "../tests/support/pack.rs"]
mod pack;

use std::fs::OpenOptions;
use std::path::PathBuf;

use situla_squashfs::WriterOptions;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap());
    let image = PathBuf::from(arguments.next().unwrap());
    let mut number = || arguments.next().map(|value| value.into_string().unwrap().parse::<u16>().unwrap());
    let threads = number().unwrap_or(2).into();
    let zstd_level = number().unwrap_or(3).into();
    let out = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(image).unwrap();
    let options = WriterOptions { threads, zstd_level, ..WriterOptions::default() };
    let (summary, _) = pack::directory(&directory, out, options);
    println!("{summary:?}");
}
