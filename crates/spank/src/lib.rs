//! The SPANK plugin: parses options and sends the task through the trampoline.
