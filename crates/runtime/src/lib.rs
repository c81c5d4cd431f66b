//! Executes a Plan: namespaces, mounts, joining, signals, exit status.
