//! From a reference to an image in the store.

use std::path::{Path, PathBuf};
use std::time::Instant;

use situla_oci::{Digest, EnrootReference, Platform, Reference};
use situla_sif::SifOptions;
use thiserror::Error;

use crate::client::Client;
use crate::convert::{
    ConvertError, ConvertOptions, OutputFormat, Timings, image_tree, resolved, write_output,
};
use crate::key::Recipe;
use crate::progress::{Event, Progress};
use crate::source::{FoundManifest, ImageSource, ResolveError, Scheme, Source, find_manifest};
use crate::store::{Acquired, Contents, Place, Store, StoreError, StoredImage, least_size};

/// Why a pull failed.
#[derive(Debug, Error)]
pub enum PullError {
    /// The name does not lead to a usable image.
    #[error("cannot pull '{image}'")]
    Resolve {
        /// The image.
        image: Box<Source>,
        /// The cause.
        #[source]
        source: ResolveError,
    },
    /// The image cannot be converted.
    #[error("cannot convert '{image}'")]
    Convert {
        /// The image.
        image: Box<Source>,
        /// The cause.
        #[source]
        source: ConvertError,
    },
    /// The store failed.
    #[error("image store failed")]
    Store(#[source] StoreError),
}

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// Digest of the image manifest.
    pub manifest_digest: Digest,
    /// SHA-256 of the SquashFS.
    pub rootfs_digest: Digest,
    /// SHA-256 of the SIF file that the SquashFS is a part of, if it is.
    pub sif_digest: Option<Digest>,
    /// The SquashFS or SIF file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// How it was made of the manifest.
    pub recipe: Recipe,
    /// In which store it is.
    pub place: Place,
    /// Whether it was there before.
    pub was_present: bool,
    /// How long it took; zero for what was not done.
    pub timings: Timings,
}

/// Makes sure that an image is in the store. A reference that is pinned by digest and was pulled before
/// needs no network.
///
/// # Errors
/// When the image cannot be had, is not what its digests promise, or the store fails.
pub fn pull(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    store: &Store,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<PulledImage, PullError> {
    if reference.digest().is_some()
        && let Some(manifest) = store.lookup(reference, platform).map_err(PullError::Store)?
        && let Some(image) = store.get(&manifest, &Recipe::of(options)).map_err(PullError::Store)?
    {
        progress.event(Event::Present);
        return Ok(present(image, Timings::default()));
    }
    let source = client.image(reference);
    let pulled = pull_from(&source, &of_registry(reference), platform, store, options, progress)?;
    store.set_ref(reference, platform, &pulled.manifest_digest).map_err(PullError::Store)?;
    Ok(pulled)
}

/// Makes sure that an image of any source is in the store; `named` is what errors call it.
///
/// # Errors
/// As [`pull`].
pub fn pull_from(
    source: &dyn ImageSource,
    named: &Source,
    platform: &Platform,
    store: &Store,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<PulledImage, PullError> {
    let began = Instant::now();
    let failed = |source| PullError::Resolve { image: Box::new(named.clone()), source };
    let found = find_manifest(source, platform).map_err(failed)?;
    progress.event(resolved(&found.digest, &found.manifest));
    let mut resolve_time = began.elapsed();
    let recipe = Recipe::of(options);
    let is_there = |stored: StoredImage, found: FoundManifest| {
        // Whoever made it has looked for which platform it is. An architecture that shares the store may have been another.
        if !store.was_made_for(&stored, platform).map_err(PullError::Store)? {
            found.complete(source, platform).map_err(failed)?;
        }
        store.forget_dead(&stored.manifest_digest, &recipe).map_err(PullError::Store)?;
        progress.event(Event::Present);
        Ok(present(stored, Timings { resolve: began.elapsed(), ..Timings::default() }))
    };
    if let Some(stored) = store.get(&found.digest, &recipe).map_err(PullError::Store)? {
        return is_there(stored, found);
    }
    let lease = match store.acquire(&found.digest, &recipe, progress).map_err(PullError::Store)? {
        Acquired::Present(stored) => return is_there(stored, found),
        Acquired::Ours(lease) => lease,
    };
    // Whoever has waited for the lease need not ask for more than the manifest.
    let leased = Instant::now();
    let image = found.complete(source, platform).map_err(failed)?;
    resolve_time += leased.elapsed();
    // Before the first byte of a layer.
    let needed = least_size(&image.manifest.layers);
    let pending = store.create_file(&lease, needed).map_err(PullError::Store)?;
    let converted = write_output(
        &pending,
        Path::new("image store"),
        OutputFormat::Sqsh,
        &SifOptions::default(),
        options,
        |sink| image_tree(source, &image, sink, options, progress),
        progress,
    )
    .map_err(|source| PullError::Convert { image: Box::new(named.clone()), source })?;
    let began = Instant::now();
    let contents = Contents { rootfs: converted.rootfs_digest, sif: None, bytes: converted.bytes };
    let stored = store.publish(lease, pending, platform, contents).map_err(PullError::Store)?;
    let mut timings = converted.timings;
    timings.resolve = resolve_time;
    timings.finish += began.elapsed();
    Ok(PulledImage { was_present: false, ..present(stored, timings) })
}

fn of_registry(reference: &Reference) -> Source {
    Source::Registry(Scheme::Docker, EnrootReference { user: None, reference: reference.clone() })
}

pub(crate) fn present(image: StoredImage, timings: Timings) -> PulledImage {
    PulledImage {
        manifest_digest: image.manifest_digest,
        rootfs_digest: image.rootfs_digest,
        sif_digest: image.sif_digest,
        path: image.path,
        bytes: image.bytes,
        recipe: image.recipe,
        place: image.place,
        was_present: true,
        timings,
    }
}
