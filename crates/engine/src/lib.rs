//! The use cases: resolve, admit, plan, run, record.
