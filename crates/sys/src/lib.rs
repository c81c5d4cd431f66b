//! Safe wrappers over the Linux calls the runtime needs.
