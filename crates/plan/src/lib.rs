//! The Plan: everything a run will do, as one printable value.
