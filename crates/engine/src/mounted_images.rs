//! Image files that are mounted inside, beside the root.
//!
//! They are served like the root, by the keeper and with the user's rights, whatever the root is. The kernel mounts
//! none of them, and none is extracted: an image with data is as large as its data.

use std::fs::File;
use std::io::ErrorKind;

use situla_bindings::{BindRequest, BindSource, ImageSource};
use situla_runtime::{MountedImage, OpenImage};
use situla_sif::{DataType, FsType, Kind, PartType, SifFile};
use situla_squashfs::FileType;

use crate::error::EngineError;
use crate::host::Host;
use crate::places::{self, Judged};
use crate::request::RunRequest;
use crate::resolve::{FileState, SquashfsFile, open_squashfs, root_partition};

/// The most images that are mounted beside the root: each costs the keeper some threads, and memory for its caches.
const MAX_IMAGES: usize = 16;

/// An image that is going to be mounted.
#[derive(Debug)]
pub(crate) struct OpenedImage {
    pub(crate) mounted: MountedImage,
    /// Where it begins in its file.
    pub(crate) offset: u64,
    /// Which file it is, and in which state.
    pub(crate) state: FileState,
}

/// Opens the images that `binds` mount, in their order. Those that are missing and may be are taken out.
pub(crate) fn open(
    binds: &mut Vec<BindRequest>,
    judged: &Judged,
    host: &Host,
) -> Result<Vec<OpenedImage>, EngineError> {
    let mut opened = Vec::new();
    let mut failure = None;
    binds.retain(|bind| {
        let BindSource::Image(source) = &bind.source else { return true };
        if failure.is_some() {
            return true;
        }
        match open_one(source, host) {
            Ok(image) => {
                let real = places::path_of_number(image.mounted.open.descriptor);
                let wanted = judged.get(&source.path);
                if wanted.is_some_and(|wanted| !real.is_ok_and(|real| real == *wanted)) {
                    failure = Some(places::exchanged(&source.path));
                }
                opened.push(image);
            }
            Err(EngineError::BindSourceMissing { .. }) if bind.optional => return false,
            Err(error) => failure = Some(error),
        }
        true
    });
    if opened.len() > MAX_IMAGES {
        failure = failure.or(Some(EngineError::BadOption {
            message: format!("{} images are to be mounted, and {MAX_IMAGES} can be", opened.len()),
            remedy: "put several into one: `situla convert DIRECTORY image.sqsh`".to_owned(),
        }));
    }
    failure.map_or(Ok(opened), Err)
}

/// Finds out whether what `request` mounts and is on this machine are images. Others may be on the nodes.
pub(crate) fn check(request: &RunRequest, host: &Host) -> Result<(), EngineError> {
    let sources = request.binds.iter().filter_map(|bind| match &bind.source {
        BindSource::Image(source) => Some(source),
        _ => None,
    });
    for source in sources {
        match open_one(source, host) {
            Ok(_) | Err(EngineError::BindSourceMissing { .. } | EngineError::OpenImage { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open_one(source: &ImageSource, host: &Host) -> Result<OpenedImage, EngineError> {
    let path = source.path.as_path();
    let shown = path.display().to_string();
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            EngineError::BindSourceMissing { path: path.to_owned(), host: host.hostname.clone() }
        }
        _ => EngineError::OpenImage { path: shown.clone(), source: error },
    })?;
    if !metadata.is_file() {
        return Err(EngineError::UnknownFormat { path: shown });
    }
    let pick = |file: &File| partition(file, &shown, source.object);
    let SquashfsFile { image, descriptor, offset, .. } = open_squashfs(path, &shown, &pick)?;
    if offset == 0 && source.object.is_some() {
        return Err(no_such(&shown, "it is no SIF image, and has no objects"));
    }
    let fail = |source| EngineError::Squashfs { path: shown.clone(), source };
    // Looked at now: what is damaged there would make a mount that answers nothing.
    let found = image.resolve(&source.directory, true).map_err(fail)?;
    let Some(found) = found.filter(|inode| inode.file_type() == FileType::Directory) else {
        return Err(no_such(&shown, &format!("it has no directory {}", source.directory)));
    };
    let root = found.inode_ref;
    let state = crate::resolve::state(&metadata);
    Ok(OpenedImage { mounted: MountedImage { open: OpenImage { image, descriptor }, root }, offset, state })
}

fn no_such(image: &str, why: &str) -> EngineError {
    EngineError::BadOption {
        message: format!("{image} cannot be mounted: {why}"),
        remedy: "leave image-src= and id= out, or name what `situla sif list` shows".to_owned(),
    }
}

/// Offset and length of what a SIF image has to be mounted: the object that is named; else its first partition of
/// data; else its root file system.
fn partition(file: &File, shown: &str, object: Option<u32>) -> Result<(u64, u64), EngineError> {
    let fail = |source| EngineError::Sif { path: shown.to_owned(), source };
    let sif = SifFile::open(file).map_err(|error| fail(error.into()))?;
    let is_squashfs = |kind: &Kind| matches!(kind, Kind::Partition { fs: FsType::Squashfs, .. });
    if let Some(id) = object {
        let found = sif.object(id).map_err(|error| fail(error.into()))?;
        if !is_squashfs(&found.kind) {
            return Err(no_such(shown, &format!("its object {id} is no SquashFS partition")));
        }
        return Ok((found.offset, found.size));
    }
    let mut data = sif.objects().iter().filter(|object| object.kind.data_type() == DataType::Partition);
    let data = data.find(|object| {
        is_squashfs(&object.kind) && matches!(object.kind, Kind::Partition { part: PartType::Data, .. })
    });
    match data {
        Some(found) => Ok((found.offset, found.size)),
        None => root_partition(file, shown),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::{Path, PathBuf};

    use situla_bindings::{parse_apptainer_bind, parse_edf_mount};
    use situla_sif::{SifOptions, SifWriter};
    use situla_squashfs::{Metadata, NodeKind, Tree, Writer, WriterOptions};

    use super::*;
    use crate::request::{Action, Personality};
    use crate::site::Site;

    /// An image with the file `sub/file`.
    fn image() -> Vec<u8> {
        let mut writer = Writer::create(Cursor::new(Vec::new()), WriterOptions::default()).unwrap();
        let file = NodeKind::File(writer.add_file(&mut Cursor::new(b"text")).unwrap());
        let meta = || Metadata { mode: 0o755, uid: 0, gid: 0, mtime: 1, xattrs: Vec::new() };
        let mut tree = Tree::new(meta());
        let sub = tree.add(meta(), NodeKind::Directory(Default::default())).unwrap();
        tree.link(tree.root(), b"sub", sub).unwrap();
        let file = tree.add(meta(), file).unwrap();
        tree.link(sub, b"file", file).unwrap();
        writer.finish(&tree).unwrap().1.into_inner()
    }

    fn host() -> Host {
        Host::gather(vec![("HOME".into(), "/nonexistent".into())]).unwrap()
    }

    fn binds(texts: &[String]) -> Vec<BindRequest> {
        let bind = |text: &String| match text.contains("image-src=") {
            true => parse_apptainer_bind(text, Path::new("/"), "--bind").unwrap().remove(0),
            false => parse_edf_mount(text, Path::new("/"), "--environment=x").unwrap(),
        };
        texts.iter().map(bind).collect()
    }

    fn opened(texts: &[String]) -> Result<Vec<OpenedImage>, String> {
        open(&mut binds(texts), &Judged::new(), &host()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_no_image_is_refused_and_by_srun_where_it_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let bytes = image();
        std::fs::write(at("good.sqsh"), &bytes).unwrap();
        std::fs::write(at("short.sqsh"), &bytes[..200]).unwrap();
        std::fs::write(at("text"), "no image at all").unwrap();
        std::fs::write(at("empty"), "").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let mount = |name: &str| format!("{}:/data:sqsh", at(name).display());
        let part = |name: &str, more: &str| format!("{}:/data:image-src={more}", at(name).display());
        assert_eq!(opened(&[mount("good.sqsh"), part("good.sqsh", "/sub")]).unwrap().len(), 2);
        let site = Site::default();
        for (text, why, seen) in [
            (mount("short.sqsh"), "cannot read the SquashFS image", true),
            (mount("text"), "is neither a SquashFS nor a SIF image", true),
            (mount("empty"), "is neither a SquashFS nor a SIF image", true),
            (mount("directory"), "is neither a SquashFS nor a SIF image", true),
            (mount("fifo"), "is neither a SquashFS nor a SIF image", true),
            (part("good.sqsh", "/sub/file"), "it has no directory /sub/file", true),
            (part("good.sqsh", "/none"), "it has no directory /none", true),
            (part("good.sqsh", "/,id=1"), "it is no SIF image", true),
            (mount("missing.sqsh"), "does not exist on", false),
        ] {
            let error = opened(std::slice::from_ref(&text)).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            let mut request = RunRequest::new(Personality::Task, "/image", Action::Exec(Vec::new()));
            request.binds = binds(std::slice::from_ref(&text));
            let checked = crate::prepare::check(&request, &host(), &site).map_err(|error| error.to_string());
            assert_eq!(checked, if seen { Err(error) } else { Ok(()) }, "{text}");
        }
        let many = vec![mount("good.sqsh"); MAX_IMAGES + 1];
        assert_eq!(opened(&many[..MAX_IMAGES]).unwrap().len(), MAX_IMAGES);
        assert!(opened(&many).unwrap_err().contains("17 images"));
    }

    #[test]
    fn missing_ones_may_be_left_out_and_others_must_be_what_was_judged() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        std::fs::write(real.join("a.sqsh"), image()).unwrap();
        let here = |name: &str, flags: &str| format!("{}:/{name}:{flags}", real.join(name).display());
        let mut some = binds(&[here("no.sqsh", "sqsh+nofail"), here("a.sqsh", "sqsh")]);
        assert_eq!(open(&mut some, &Judged::new(), &host()).unwrap().len(), 1);
        assert_eq!(
            some.iter().map(|bind| bind.destination.as_path()).collect::<Vec<_>>(),
            [Path::new("/a.sqsh")]
        );
        let judged = |path: PathBuf| Judged::from([(real.join("a.sqsh"), path)]);
        assert!(open(&mut some, &judged(real.join("a.sqsh")), &host()).is_ok());
        let error = open(&mut some, &judged(real.join("other")), &host()).unwrap_err().to_string();
        assert!(error.contains("was exchanged"), "{error}");
    }

    #[test]
    fn of_a_sif_it_is_the_data_or_the_root_or_what_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sif");
        let arch = situla_oci::Platform::native().architecture;
        let options = SifOptions { arch, ..SifOptions::default() };
        let writer = SifWriter::new(Cursor::new(Vec::new()), options).unwrap();
        std::fs::write(&path, writer.write_partition(&mut Cursor::new(image())).unwrap().into_inner())
            .unwrap();
        let text = |words: &str| format!("{}:/data:{words}", path.display());
        for words in ["sqsh", "image-src=/", "image-src=/sub,id=1"] {
            let images = opened(&[text(words)]).unwrap();
            assert!(images[0].offset > 0, "{words}");
        }
        let error = opened(&[text("image-src=/,id=7")]).unwrap_err();
        assert!(error.contains("cannot use the SIF image"), "{error}");
    }
}
