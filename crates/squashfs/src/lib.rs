//! SquashFS 4.0: a bounded reader and a deterministic streaming writer.
