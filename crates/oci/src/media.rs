//! Media types of manifests, configurations and layers.
//!
//! A layer's media type is only advice: registries exist that relabel layers, so the reader of a layer
//! decides by the first bytes and this module only tells layers from things that are no layer.

/// A manifest or index media type that this program understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerList,
}

/// Value of the `Accept` header of every manifest request. Registries that get none answer with an
/// obsolete conversion or with 404.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// Media type of a SIF file, as Apptainer and Singularity push it by `oras://`.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";
/// Media type of the configuration of such an artifact, which says nothing.
pub const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";

/// Tells whether a layer is a SIF file rather than a change set.
#[must_use]
pub fn is_sif_layer(media_type: &str) -> bool {
    // The second is what early versions of Singularity wrote, with its typing mistake.
    matches!(media_type, SIF_LAYER | "appliciation/vnd.sylabs.sif.layer.tar")
}

impl MediaType {
    /// Recognises a media type, ignoring parameters such as `; charset=utf-8`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split(';').next().unwrap_or_default().trim() {
            "application/vnd.oci.image.manifest.v1+json" => Some(Self::OciManifest),
            "application/vnd.oci.image.index.v1+json" => Some(Self::OciIndex),
            "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::DockerManifest),
            "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::DockerList),
            _ => None,
        }
    }

    /// Tells whether documents of this type list manifests rather than layers.
    #[must_use]
    pub fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

/// What a layer descriptor's media type announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A file system change set in tar form, possibly compressed.
    Tar,
    /// Anything else: an artifact, an attestation, an encrypted layer.
    NotALayer,
}

impl LayerKind {
    /// Classifies a layer media type.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let base = text.split(';').next().unwrap_or_default().trim();
        let stem = base
            .strip_suffix("+gzip")
            .or_else(|| base.strip_suffix("+zstd"))
            .or_else(|| base.strip_suffix(".gzip"))
            .or_else(|| base.strip_suffix(".zstd"))
            .unwrap_or(base);
        match stem {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Self::Tar,
            _ => Self::NotALayer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_layers() {
        for tar in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert_eq!(LayerKind::parse(tar), LayerKind::Tar, "{tar}");
        }
        for other in [
            "",
            "application/vnd.in-toto+json",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.sylabs.sif.layer.v1.sif",
        ] {
            assert_eq!(LayerKind::parse(other), LayerKind::NotALayer, "{other}");
        }
    }

    #[test]
    fn sif_files_are_told_from_layers() {
        assert!(is_sif_layer(SIF_LAYER) && !is_sif_layer(SIF_CONFIG));
        assert!(!is_sif_layer("application/vnd.oci.image.layer.v1.tar"));
    }

    #[test]
    fn ignores_parameters() {
        let text = "application/vnd.oci.image.index.v1+json; charset=utf-8";
        assert_eq!(MediaType::parse(text), Some(MediaType::OciIndex));
        assert_eq!(MediaType::parse("text/html"), None);
    }
}
