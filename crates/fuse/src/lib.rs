//! A FUSE server for read-only images, speaking the kernel protocol directly.
