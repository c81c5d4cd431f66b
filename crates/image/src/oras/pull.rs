//! A SIF file out of a registry into the store, as it is.
//!
//! It is kept under the digest of its manifest, like any image of a registry, and no recipe has a part in it.
//! What is mounted of it is one of its partitions, so that two digests are known: that of the file, which
//! the registry has promised, and that of the root file system, by which a run is known.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use situla_oci::{Algorithm, Platform, PlatformError, Reference};
use situla_sif::Arch;
use situla_squashfs::{Image, ReadOptions};

use super::SifTransferError;
use super::fetch::fetch_into;
use super::found::FoundSif;
use crate::client::Client;
use crate::convert::{ConvertError, Timings, hash_from, hash_telling};
use crate::file_error::FileError;
use crate::inspect::{RootWindow, only_root};
use crate::key::Recipe;
use crate::progress::{Event, Progress};
use crate::pull::{PulledImage, present};
use crate::source::{ResolveError, Scheme};
use crate::store::{Acquired, Contents, Lease, Store, StoredImage};

/// What errors call the place that is written to.
const PLACE: &str = "image store";

/// Makes sure that a SIF file of a registry is in the store. A reference that is pinned by digest and was pulled before
/// needs no network.
///
/// # Errors
/// When it cannot be had, is no SIF that can be mounted here or not what its digest promises, or the store fails.
pub fn pull_sif(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    store: &Store,
    progress: &dyn Progress,
) -> Result<PulledImage, SifTransferError> {
    if reference.digest().is_some()
        && let Some(manifest) = store.lookup(reference, platform).map_err(SifTransferError::Store)?
        && let Some(image) = store.get(&manifest, &Recipe::VERBATIM).map_err(SifTransferError::Store)?
    {
        progress.event(Event::Present);
        return Ok(present(image, Timings::default()));
    }
    let began = Instant::now();
    let found = FoundSif::find(client, reference, platform)?;
    progress.event(found.event());
    let mut timings = Timings { resolve: began.elapsed(), ..Timings::default() };
    let acquired = store.acquire(&found.manifest, &Recipe::VERBATIM, progress);
    let pulled = match acquired.map_err(SifTransferError::Store)? {
        Acquired::Present(stored) => {
            expect_for(platform, reference, &stored)?;
            let forgotten = store.forget_dead(&stored.manifest_digest, &Recipe::VERBATIM);
            forgotten.map_err(SifTransferError::Store)?;
            progress.event(Event::Present);
            present(stored, timings)
        }
        Acquired::Ours(lease) => {
            let began = Instant::now();
            let stored = put(client, reference, platform, &found, store, lease, progress)?;
            timings.convert = began.elapsed();
            PulledImage { was_present: false, ..present(stored, timings) }
        }
    };
    store.set_ref(reference, platform, &found.manifest).map_err(SifTransferError::Store)?;
    Ok(pulled)
}

/// Fetches the file into the store.
fn put(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    found: &FoundSif,
    store: &Store,
    lease: Lease,
    progress: &dyn Progress,
) -> Result<StoredImage, SifTransferError> {
    let bytes = found.layer.size;
    // Before the first byte.
    let pending = store.create_file(&lease, bytes).map_err(SifTransferError::Store)?;
    let file = fetch_into(client, reference, found, &pending, Path::new(PLACE), progress)?;
    let name = PathBuf::from(format!("{}{reference}", Scheme::Oras));
    let (window, arch) = only_root(&name, &file)?;
    expect_arch(platform, reference, arch)?;
    expect_mountable(&name, &file, window)?;
    let read = || FileError::read(&name);
    let (rootfs, _) = hash_telling(&file, window.offset, window.len, progress).map_err(read())?;
    let sif = match found.layer.digest.algorithm() {
        Algorithm::Sha256 => found.layer.digest.clone(),
        _ => hash_from(&file, 0).map_err(read())?.0,
    };
    let contents = Contents { rootfs, sif: Some(sif), bytes };
    store.publish(lease, pending, platform, contents).map_err(SifTransferError::Store)
}

/// Fails where a file that is there already is for another kind of machine, which may have fetched it into the same store.
fn expect_for(
    platform: &Platform,
    reference: &Reference,
    stored: &StoredImage,
) -> Result<(), SifTransferError> {
    let file = File::open(&stored.path).map_err(FileError::read(&stored.path))?;
    let (_, arch) = only_root(&stored.path, &file)?;
    expect_arch(platform, reference, arch)
}

fn expect_arch(platform: &Platform, reference: &Reference, arch: Arch) -> Result<(), SifTransferError> {
    if arch == Arch::UNKNOWN || arch.go_name() == platform.architecture {
        return Ok(());
    }
    let error = PlatformError::NoMatch { wanted: platform.clone(), available: arch.go_name().to_owned() };
    let source = ResolveError::Platform(Box::new(error));
    Err(SifTransferError::Resolve { reference: Box::new(reference.clone()), source })
}

fn expect_mountable(name: &Path, file: &File, window: RootWindow) -> Result<(), SifTransferError> {
    let file = file.try_clone().map_err(FileError::read(name))?;
    let opened = Image::open(window.over(file), ReadOptions::default());
    let failed = |source| ConvertError::NotSquashfs { path: name.to_owned(), source };
    opened.map(drop).map_err(|error| failed(error).into())
}
