//! Image references, digests, manifests and platforms of the OCI specifications.
