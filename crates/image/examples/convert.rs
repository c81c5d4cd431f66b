//! Converts an image from the command line, for trying the library out:
//! `convert SOURCE OUTPUT [MIB]`, where SOURCE is `docker://…`, `oci:DIR[:TAG]`, a directory, a `.sif` or a
//! `.sqsh`, OUTPUT is a `.sif` or `.sqsh`, and MIB is the memory to plan with.

use std::error::Error;
use std::path::Path;

use situla_image::{
    Client, ClientOptions, ConvertOptions, Converted, LayoutImage, OutputFormat, Owners, Resources,
    convert_directory, convert_file, convert_image,
};
use situla_oci::{Platform, Reference};

#[expect(clippy::print_stdout, reason = "an example shows its result")]
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (source, out, limit) = match args.as_slice() {
        [source, out] => (source, out, None),
        [source, out, mib] => (source, out, Some(mib.parse::<u64>()? << 20)),
        _ => return Err("usage: convert SOURCE OUTPUT [MIB]".into()),
    };
    let n_cpus = std::thread::available_parallelism()?.get();
    let options =
        ConvertOptions { overwrite: true, ..ConvertOptions::within(Resources::plan(n_cpus, limit)?) };
    let made = convert(source, Path::new(out), &options)?;
    println!("{} bytes, rootfs {}, {:?}", made.bytes, made.rootfs_digest, made.timings);
    Ok(())
}

fn convert(source: &str, out: &Path, options: &ConvertOptions) -> Result<Converted, Box<dyn Error>> {
    let format = OutputFormat::of_path(out);
    let platform = Platform::native();
    if source.starts_with("docker://") {
        let client = Client::new(ClientOptions::default());
        let reference = Reference::parse(source)?;
        return Ok(convert_image(&client.image(&reference), &platform, out, format, options, &())?);
    }
    if let Some(layout) = source.strip_prefix("oci:") {
        let (dir, tag) = match layout.rsplit_once(':') {
            Some((dir, tag)) => (dir, Some(tag.parse()?)),
            None => (layout, None),
        };
        let image = LayoutImage::open(Path::new(dir), tag.as_ref())?;
        return Ok(convert_image(&image, &platform, out, format, options, &())?);
    }
    let path = Path::new(source);
    if path.is_dir() {
        return Ok(convert_directory(path, Owners::Root, out, format, options, &())?);
    }
    Ok(convert_file(path, out, format, options)?)
}
