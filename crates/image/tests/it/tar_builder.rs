//! Builds tar archives byte by byte, including ones that no honest tool would write.

/// An archive under construction.
#[derive(Debug, Default, Clone)]
pub(crate) struct TarBuilder {
    bytes: Vec<u8>,
    pax: Vec<(String, Vec<u8>)>,
    mode: Option<u32>,
    owner: (u32, u32),
    mtime: u64,
}

impl TarBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Sets the mode of the entries that follow.
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// Adds a PAX record to the next entry.
    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.to_owned(), value.to_vec()));
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(b'0', path.as_bytes(), b"", content)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(b'5', format!("{path}/").as_bytes(), b"", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path.as_bytes(), target.as_bytes(), b"")
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path.as_bytes(), target.as_bytes(), b"")
    }

    /// Adds an entry of any type.
    pub(crate) fn entry(mut self, flag: u8, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        let pax = std::mem::take(&mut self.pax);
        if !pax.is_empty() {
            let body: Vec<u8> = pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            self.raw(b'x', b"PaxHeaders/x", b"", &body);
        }
        self.raw(flag, name, link, content);
        self
    }

    fn raw(&mut self, flag: u8, name: &[u8], link: &[u8], content: &[u8]) {
        let default_mode = if flag == b'5' { 0o755 } else { 0o644 };
        let mode = self.mode.unwrap_or(default_mode);
        let block = header(flag, name, link, content.len() as u64, mode, self.owner, self.mtime);
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub(crate) fn build(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    pub(crate) fn build_without_end(self) -> Vec<u8> {
        self.bytes
    }
}

fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len += 1;
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

pub(crate) fn header(
    flag: u8,
    name: &[u8],
    link: &[u8],
    size: u64,
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, format!("{:07o}", owner.0).as_bytes());
    put(116, format!("{:07o}", owner.1).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{mtime:011o}").as_bytes());
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, b"0000001");
    put(337, b"0000003");
    seal(&mut block);
    block
}

/// Fills in the checksum.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
