//! Converts an image from the command line, for trying the library out:
//! `convert SOURCE OUTPUT [MIB]`, where SOURCE is `docker://…`, `oras://…`, `oci:DIR[:TAG]`, a directory, a `.sif` or a
//! `.sqsh`, OUTPUT is a `.sif` or `.sqsh`, and MIB is the memory to plan with.

use std::error::Error;
use std::path::Path;

use situla_image::{
    Client, ClientOptions, ConvertOptions, Converted, ImageFile, LayoutImage, OutputFormat, Owners,
    Resources, Scheme, Source, convert_directory, convert_file, convert_image, fetch_sif,
};
use situla_oci::Platform;

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
    match Source::parse(source)? {
        Source::Registry(scheme, named) => {
            let client = Client::new(ClientOptions::default());
            if scheme == Scheme::Oras {
                let fetched = fetch_sif(&client, &named.reference, &platform, &std::env::temp_dir(), &())?;
                return Ok(convert_file(&fetched.file, out, format, options, &())?);
            }
            return Ok(convert_image(&client.image(&named.reference), &platform, out, format, options, &())?);
        }
        Source::Layout(dir, which) => {
            let image = LayoutImage::open(&dir, &which)?;
            return Ok(convert_image(&image, &platform, out, format, options, &())?);
        }
        _ => {}
    }
    let path = Path::new(source);
    if path.is_dir() {
        return Ok(convert_directory(path, Owners::Root, out, format, options, &())?);
    }
    Ok(convert_file(&ImageFile::open(path)?, out, format, options, &())?)
}
