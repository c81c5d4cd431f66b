//! Requests of the kernel's, to the server of an image that lies.
//!
//! The input is a script and an image: two bytes tell the length of the script, eight bytes of it make a
//! request. The invariants, here and in the fuzz target: every request is answered or passed over; an answer is
//! an error of the kernel's range or no longer than was asked for; lists of names are well-formed.

use situla_fuse::{Layered, Reply, Server};
use situla_squashfs::{Image, ReadOptions};

use crate::image_tree::ImageTree;

/// The longest answer that there may be.
const MAX_ANSWER: usize = 1 << 20;

/// Requests of one script: more only make it slower.
const MAX_REQUESTS: usize = 200;

/// `enum fuse_opcode` of linux/fuse.h, as far as the server knows it, and one more.
const OPCODES: [u32; 14] = [1, 1, 3, 5, 15, 15, 17, 22, 23, 26, 28, 44, 44, 14];
const LOOKUP: u32 = 1;
const READ: u32 = 15;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const READDIR: u32 = 28;
const READDIRPLUS: u32 = 44;

const NAMES: [&[u8]; 12] =
    [b"bin", b"etc", b"passwd", b"witness", b"sub", b"links", b"many", b"mnt", b"point", b"..", b"", b"a/b"];

const SIZES: [u32; 6] = [0, 1, 200, 4096, 131_072, u32::MAX];

/// Serves the image of `input` to the script in it; gives the number of requests that had data for an answer,
/// or `None` where the image does not open.
pub(crate) fn serve(input: &[u8]) -> Option<usize> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let (script, image) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let image = Image::open(image.to_vec(), ReadOptions { cache_bytes: 1 << 20 }).ok()?;
    let mut tree = Layered::new(ImageTree::new(image.into(), 1000, 1000), 1000, 1000);
    // An image whose directories cannot be read takes no patches.
    let patched = tree.add_directory("/mnt/point").is_ok()
        && tree.add_file("/etc/hosts", b"127.0.0.1 here\n".to_vec(), 0o644).is_ok()
        && tree.complete_file("/etc/passwd", 0o644, Box::new(<[u8]>::to_vec)).is_ok();
    let server = Server::new(&tree);
    let mut nodes = vec![1];
    let mut payload = Vec::new();
    let mut n_data = usize::from(patched);
    for chunk in script.chunks(8).take(MAX_REQUESTS) {
        let (request, opcode, limit) = request(chunk, &nodes);
        let Ok(reply) = server.reply_to(&request, &mut payload) else {
            // Only a kernel that speaks another protocol is not served.
            assert_eq!(opcode, 26);
            continue;
        };
        let Some(Reply { unique, error }) = reply else { continue };
        assert_eq!(unique, 77);
        assert!((-4095..=0).contains(&error), "{error}");
        assert!(error == 0 || payload.is_empty());
        assert!(payload.len() <= MAX_ANSWER);
        if error == 0 {
            n_data += 1;
            assert!(limit.is_none_or(|limit| payload.len() <= limit), "{opcode}: {}", payload.len());
            learn(opcode, &payload, &mut nodes);
        }
    }
    Some(n_data)
}

/// Makes a request of eight bytes; gives its opcode, and how long the answer may be at most.
fn request(chunk: &[u8], nodes: &[u64]) -> (Vec<u8>, u32, Option<usize>) {
    let byte = |at: usize| chunk.get(at).copied().unwrap_or(0);
    let opcode = OPCODES[usize::from(byte(0)) % OPCODES.len()];
    let node = match byte(1) {
        // A node that nobody has told of.
        0xff => u64::from_le_bytes(std::array::from_fn(byte)),
        index => nodes[usize::from(index) % nodes.len()],
    };
    let offset = match byte(2) {
        0xff => u64::MAX - u64::from(byte(3)),
        0xfe => u64::from_le_bytes(std::array::from_fn(byte)),
        low => u64::from(low) << (byte(3) % 24),
    };
    let size = SIZES[usize::from(byte(4)) % SIZES.len()];
    let name = NAMES[usize::from(byte(5)) % NAMES.len()];
    let mut body = Vec::new();
    match opcode {
        LOOKUP => body.extend([name, b"\0"].concat()),
        READ | READDIR | READDIRPLUS => {
            body.extend([0; 8]);
            body.extend(offset.to_ne_bytes());
            body.extend(size.to_ne_bytes());
        }
        GETXATTR => {
            body.extend(size.to_ne_bytes());
            body.extend([0; 4]);
            body.extend(b"user.key\0");
        }
        LISTXATTR => body.extend(size.to_ne_bytes()),
        26 => {
            body.extend([7 + u32::from(byte(6) % 3 == 2), 31, size, u32::MAX].map(u32::to_ne_bytes).concat())
        }
        _ => {}
    }
    // Sometimes it is shorter than it says, or than its type demands.
    body.truncate(if byte(7) == 0xff { usize::from(byte(6)) } else { body.len() });
    let mut request = Vec::new();
    request.extend(u32::try_from(40 + body.len()).unwrap_or(0).to_ne_bytes());
    request.extend(opcode.to_ne_bytes());
    request.extend(77u64.to_ne_bytes());
    request.extend(node.to_ne_bytes());
    request.extend([0; 16]);
    request.extend(body);
    let bounded =
        matches!(opcode, READ | READDIR | READDIRPLUS) || matches!(opcode, GETXATTR | LISTXATTR) && size > 0;
    (request, opcode, bounded.then(|| usize::try_from(size).unwrap_or(usize::MAX)))
}

/// Takes the nodes out of an answer, and looks at its names.
fn learn(opcode: u32, payload: &[u8], nodes: &mut Vec<u64>) {
    let number =
        |at: usize| payload.get(at..at + 8).map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("8")));
    let mut add = |node: Option<u64>| {
        if let Some(node) = node.filter(|node| *node != 0 && nodes.len() < 250) {
            nodes.push(node);
        }
    };
    if opcode == LOOKUP {
        add(number(0));
    }
    if opcode == READDIR || opcode == READDIRPLUS {
        // struct fuse_entry_out, and struct fuse_dirent: ino, off, namelen, type, name.
        let prefix = if opcode == READDIRPLUS { 128 } else { 0 };
        let mut at = 0;
        while at < payload.len() {
            if prefix > 0 {
                add(number(at));
            }
            let length = number(at + prefix + 16).expect("an entry is whole") & 0xffff_ffff;
            let length = usize::try_from(length).expect("a name is short");
            let start = at + prefix + 24;
            let name = payload.get(start..start + length).expect("a name is whole");
            assert!(!name.is_empty() && name.len() <= 256);
            assert!(!name.contains(&b'/') && !name.contains(&0), "{name:?}");
            at += prefix + (24 + length).next_multiple_of(8);
        }
        assert_eq!(at, payload.len());
    }
}
