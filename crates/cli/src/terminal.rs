//! Asking the person at a terminal.

use std::io::{self, BufRead, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// Longest answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Asks for a line.
pub(crate) fn ask(question: &str) -> io::Result<String> {
    prompt(question)?;
    let mut line = String::new();
    io::stdin().lock().take(MAX_ANSWER as u64).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Asks for a line that is not shown while it is typed.
pub(crate) fn ask_unseen(question: &str) -> io::Result<Vec<u8>> {
    prompt(question)?;
    let before = tcgetattr(io::stdin())?;
    let restore = Restore(before.clone());
    let mut unseen = before;
    // Keys that end or stop the process come as characters, so that it never ends with a terminal that shows nothing.
    unseen.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    unseen.special_codes[SpecialCodeIndex::VMIN] = 1;
    unseen.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(io::stdin(), OptionalActions::Flush, &unseen)?;
    let answer = read_line(&mut io::stdin().lock());
    drop(restore);
    writeln!(io::stderr())?;
    answer
}

/// Gives a terminal its settings back.
struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        // Where that is no longer possible the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn prompt(question: &str) -> io::Result<()> {
    let mut out = io::stderr();
    write!(out, "{question}")?;
    out.flush()
}

/// Reads keys up to the end of a line, and does what a terminal does by itself otherwise.
fn read_line(keys: &mut impl Read) -> io::Result<Vec<u8>> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const BACKSPACE: u8 = 8;
    const KILL_LINE: u8 = 21;
    const DELETE: u8 = 127;
    let mut line = Vec::new();
    let mut key = [0];
    loop {
        if keys.read(&mut key)? == 0 {
            return Ok(line);
        }
        match key[0] {
            b'\r' | b'\n' | END => return Ok(line),
            INTERRUPT => return Err(io::Error::other("interrupted")),
            KILL_LINE => line.clear(),
            BACKSPACE | DELETE => {
                // All bytes of the last character.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            _ if line.len() >= MAX_ANSWER => return Err(io::Error::other("it is too long")),
            byte => line.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_the_line() {
        for (keys, want) in [
            (&b"pw\nrest"[..], Some(&b"pw"[..])),
            (b"pw\r", Some(b"pw")),
            (b"p\x7f\x7f\x08x\n", Some(b"x")),
            ("aü\u{7f}b\n".as_bytes(), Some(b"ab")),
            (b"old\x15new\n", Some(b"new")),
            (b"pw\x04", Some(b"pw")),
            (b"pw", Some(b"pw")),
            (b"pw\x03\n", None),
        ] {
            assert_eq!(read_line(&mut &*keys).ok().as_deref(), want, "{keys:?}");
        }
        assert!(read_line(&mut io::repeat(b'x')).is_err());
    }
}
