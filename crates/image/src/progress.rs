//! What is going on, for whoever shows it.

use situla_oci::Digest;

/// Something that happened during a pull or a conversion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The reference was resolved.
    Resolved {
        /// Digest of the image manifest.
        manifest: Digest,
        /// Number of layers.
        n_layers: usize,
        /// Sum of their compressed sizes in bytes.
        bytes: u64,
    },
    /// The image is in the store already.
    Present,
    /// Another process is converting the same image; we wait for it.
    Waiting {
        /// Who holds the lease, as written there.
        holder: String,
    },
    /// A tree is being extracted, here and by nobody else.
    Extracting,
    /// Compressed bytes of a layer arrived.
    Fetched {
        /// Layer, 0 being the lowest.
        layer_idx: usize,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A layer was verified and merged.
    LayerDone {
        /// Layer, 0 being the lowest.
        layer_idx: usize,
    },
    /// So many bytes of files of this machine are to be read, where that is known before.
    ToRead {
        /// Bytes in all.
        bytes: u64,
    },
    /// Bytes of a file of this machine were read.
    Read {
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A file of a directory tree cannot be represented and was left out.
    Skipped {
        /// Its path in the tree.
        path: String,
        /// Why.
        why: &'static str,
    },
}

/// Receives events, from several threads.
pub trait Progress: Sync {
    /// Takes an event; it should return fast.
    fn event(&self, event: Event);
}

/// Ignores everything.
impl Progress for () {
    fn event(&self, _event: Event) {}
}
