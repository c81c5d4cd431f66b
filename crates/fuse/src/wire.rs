//! The numbers and layouts of the kernel's protocol that a read-only server needs.
//!
//! Quoted from `include/uapi/linux/fuse.h`; the byte order is the machine's own.

/// `FUSE_KERNEL_VERSION`: the major version spoken here.
pub(crate) const KERNEL_VERSION: u32 = 7;
/// The minor version offered. 7.31 (Linux 5.4) has all that is used here.
pub(crate) const KERNEL_MINOR_VERSION: u32 = 31;

/// `sizeof(struct fuse_in_header)`: len, opcode, unique, nodeid, uid, gid, pid, padding.
pub(crate) const IN_HEADER_LEN: usize = 40;
/// `sizeof(struct fuse_out_header)`: len, error, unique.
pub(crate) const OUT_HEADER_LEN: usize = 16;
/// `sizeof(struct fuse_attr)`.
pub(crate) const ATTR_LEN: usize = 88;
/// `sizeof(struct fuse_entry_out)`: nodeid, generation, two validities, two nsecs, attr.
pub(crate) const ENTRY_OUT_LEN: usize = 40 + ATTR_LEN;
/// `FUSE_MIN_READ_BUFFER`: a smaller buffer makes read(2) fail with EINVAL.
pub(crate) const MIN_READ_BUFFER: usize = 8192;

/// `FUSE_*` opcodes; see `enum fuse_opcode`. OPEN (14), FLUSH (25) and OPENDIR (27) are missing on
/// purpose: what is not listed is answered with ENOSYS, and the kernel does not ask again.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const READ: u32 = 15;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const READDIRPLUS: u32 = 44;
}

/// INIT flags asked for; the kernel grants those it knows.
pub(crate) mod init_flag {
    /// Several reads of one file at once.
    pub(crate) const ASYNC_READ: u32 = 1 << 0;
    /// The server understands READDIRPLUS.
    pub(crate) const DO_READDIRPLUS: u32 = 1 << 13;
    /// READDIRPLUS only where the kernel expects lookups to follow.
    pub(crate) const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// ENOSYS for OPEN means: never ask again, keep the cache.
    pub(crate) const NO_OPEN_SUPPORT: u32 = 1 << 17;
    /// Lookups and readdir of one directory at once.
    pub(crate) const PARALLEL_DIROPS: u32 = 1 << 18;
    /// Reading requests fails with ECONNABORTED where the connection was aborted, as the administrator can: it
    /// cannot be told from an unmount otherwise.
    pub(crate) const ABORT_ERROR: u32 = 1 << 21;
    /// `max_pages` of the reply is valid.
    pub(crate) const MAX_PAGES: u32 = 1 << 22;
    /// Targets of symbolic links may be cached.
    pub(crate) const CACHE_SYMLINKS: u32 = 1 << 23;
    /// ENOSYS for OPENDIR means: never ask again, cache listings.
    pub(crate) const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
}

/// Reads the `u32` at `offset`, if the buffer is long enough.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// Reads the `u64` at `offset`, if the buffer is long enough.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_ne_bytes(field.try_into().ok()?))
}
