//! What can be read of a store: images by digest and recipe, and what references meant.
//!
//! Reading takes no lock and writes nothing, so that it is the same for a store of the site that only its
//! administrator can write.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use situla_oci::{Digest, Platform, Reference};

use super::records::{ImageRecord, RECORD_VERSION, REF_VERSION, RefRecord, list_dir, read_record};
use super::{Place, StoreError, StoredImage};
use crate::file_error::FileError;
use crate::key::Recipe;

/// The ends of the names of images: of what was made here, and of what is kept as it came.
const SQUASHFS: &str = ".sqsh";
const SIF: &str = ".sif";

/// The directory of a store, for reading.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    pub(super) dir: PathBuf,
    pub(super) place: Place,
}

/// The name of an image, without the directory and what follows the dot.
pub(super) fn stem(manifest: &Digest, recipe: &Recipe) -> String {
    format!("{}-{}", manifest.file_stem(), recipe.short())
}

/// The end of the name of an image, which follows from its stem: nothing but SIF files is kept as it came.
fn suffix(stem: &str) -> &'static str {
    let recipe = stem.rsplit('-').next().unwrap_or_default();
    if recipe == Recipe::VERBATIM.short() { SIF } else { SQUASHFS }
}

/// The stem of what has the name of an image.
fn stem_of_name(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(SQUASHFS).or_else(|| name.strip_suffix(SIF))?;
    (manifest_of(stem).is_some() && name.ends_with(suffix(stem))).then_some(stem)
}

/// The manifest digest in a stem, of any version of the store.
pub(super) fn manifest_of(stem: &str) -> Option<Digest> {
    let mut parts = stem.splitn(3, '-');
    let (algorithm, hex) = (parts.next()?, parts.next()?);
    if let Some(recipe) = parts.next()
        && (recipe.is_empty() || !recipe.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return None;
    }
    format!("{algorithm}:{hex}").parse().ok()
}

impl Shelf {
    pub(super) fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    pub(super) fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }

    pub(super) fn image_path(&self, stem: &str) -> PathBuf {
        self.images().join(format!("{stem}{}", suffix(stem)))
    }

    pub(super) fn ref_path(&self, reference: &Reference, platform: &Platform) -> PathBuf {
        let key = Digest::sha256(format!("{reference} {platform}").as_bytes());
        self.dir.join("refs").join(format!("{}.json", key.hex()))
    }

    /// The image of this recipe, else one that serves as well: an update of the program must neither fetch
    /// everything anew nor fail where there is no network.
    pub(super) fn get(&self, manifest: &Digest, recipe: &Recipe) -> Result<Option<StoredImage>, StoreError> {
        for recipe in [recipe, &Recipe::VERBATIM] {
            if let Some(image) = self.by_stem(&stem(manifest, recipe))? {
                return Ok(Some(image));
            }
        }
        let mut others = self.of_manifest(manifest)?;
        others.retain(|image| recipe.is_served_by(&image.recipe));
        Ok(others.into_iter().max_by_key(|image| (image.recipe.converter, image.recipe.zstd)))
    }

    /// All images of a manifest.
    pub(super) fn of_manifest(&self, manifest: &Digest) -> Result<Vec<StoredImage>, StoreError> {
        let of_it = |stem: &&String| manifest_of(stem).as_ref() == Some(manifest);
        let stems = self.stems()?;
        stems.iter().filter(of_it).filter_map(|stem| self.by_stem(stem).transpose()).collect()
    }

    /// A complete image: one whose record agrees with it.
    pub(super) fn by_stem(&self, stem: &str) -> Result<Option<StoredImage>, StoreError> {
        let path = self.image_path(stem);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::read(path)(source).into()),
        };
        // A missing, foreign or contradicting record means that the file is not what we published.
        let Some(record) = read_record::<ImageRecord>(&path.with_extension("json"))? else { return Ok(None) };
        let recipe = match (record.version, record.recipe) {
            (1, None) => Recipe::unwritten(),
            (RECORD_VERSION, Some(recipe)) => recipe,
            _ => return Ok(None),
        };
        let is_named_so = match record.version {
            1 => record.manifest.file_stem() == stem,
            _ => super::shelf::stem(&record.manifest, &recipe) == stem,
        };
        if !is_named_so || record.bytes != metadata.len() {
            return Ok(None);
        }
        Ok(Some(StoredImage {
            manifest_digest: record.manifest,
            rootfs_digest: record.rootfs,
            sif_digest: record.sif,
            recipe,
            path,
            bytes: record.bytes,
            place: self.place,
            made: metadata.modified().ok(),
        }))
    }

    /// The stems of what has the name of an image.
    pub(super) fn stems(&self) -> Result<Vec<String>, StoreError> {
        let names = list_dir(&self.images())?;
        Ok(names.iter().filter_map(|name| stem_of_name(name)).map(str::to_owned).collect())
    }

    pub(super) fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let stems = self.stems()?;
        stems.iter().filter_map(|stem| self.by_stem(stem).transpose()).collect()
    }

    pub(super) fn lookup(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<Digest>, StoreError> {
        let record = read_record::<RefRecord>(&self.ref_path(reference, platform))?;
        Ok(record
            .filter(|r| r.version == REF_VERSION && r.reference == *reference)
            .filter(|r| r.platform == platform.to_string())
            .map(|r| r.manifest))
    }

    /// What references meant, with the file that says so.
    pub(super) fn refs(&self) -> Result<Vec<(PathBuf, Reference, Digest)>, StoreError> {
        let dir = self.dir.join("refs");
        let mut refs = Vec::new();
        for name in list_dir(&dir)? {
            let path = dir.join(name);
            if let Some(record) = read_record::<RefRecord>(&path)?
                && record.version == REF_VERSION
            {
                refs.push((path, record.reference, record.manifest));
            }
        }
        Ok(refs)
    }
}

/// The stem of an image of a store, by its path alone, and the store's directory.
pub(super) fn placed(image: &Path) -> Option<(&Path, &str)> {
    let stem = stem_of_name(image.file_name()?.to_str()?)?;
    let images = image.parent().filter(|directory| directory.ends_with("images"))?;
    Some((images.parent()?, stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_name_manifests() {
        let manifest = Digest::sha256(b"m");
        let recipe = Recipe::unwritten();
        let hex = manifest.hex();
        for (text, want) in [
            (stem(&manifest, &recipe), true),
            (manifest.file_stem(), true),
            (format!("sha256-{hex}-0a"), true),
            (format!("sha256-{hex}-"), false),
            (format!("sha256-{hex}-0a-1"), false),
            (format!("sha256-{hex}.x"), false),
            (format!("sha256-{}", &hex[1..]), false),
            ("sha256".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(manifest_of(&text).as_ref() == Some(&manifest), want, "{text}");
        }
        let name = stem(&manifest, &recipe);
        let path = PathBuf::from(format!("/cache/situla/images/{name}.sqsh"));
        assert_eq!(placed(&path), Some((Path::new("/cache/situla"), name.as_str())));
        // What is kept as it came is a SIF file, and nothing else is.
        let kept = stem(&manifest, &Recipe::VERBATIM);
        let path = PathBuf::from(format!("/cache/situla/images/{kept}.sif"));
        assert_eq!(placed(&path), Some((Path::new("/cache/situla"), kept.as_str())));
        assert_eq!(placed(&path.with_extension("sqsh")), None);
        for other in [format!("/cache/situla/other/{name}.sqsh"), format!("/cache/situla/images/{name}.sif")]
        {
            assert_eq!(placed(Path::new(&other)), None);
        }
        assert_eq!(placed(Path::new("/images/a.sqsh")), None);
    }
}
