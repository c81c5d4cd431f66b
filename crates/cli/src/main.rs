//! The situla command and its personalities.

fn main() {}
