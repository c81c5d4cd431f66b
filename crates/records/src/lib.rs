//! Run records: an append-only journal per step and node, and its outcome.
