//! What of the host is visible inside: bind mounts, files, devices, PMIx.
