//! Devices by name, as the Container Device Interface has them (CDI, `SPEC.md` of `container-device-interface`).
//!
//! A vendor's tool writes down what a device needs inside a container: device nodes, files, variables, hooks. Here
//! the text of such a specification becomes a value ([`CdiSpec`]), and the names of devices become what they
//! ask for ([`resolve`]). Nothing is made: nodes are those of the host, shown by bind mounts. What cannot be done that way is
//! refused, but only for a device that needs it.

mod error;
mod name;
mod resolve;
mod spec;
mod yaml;

pub use error::CdiError;
pub use name::DeviceName;
pub use resolve::{DeviceEdits, SpecFile, resolve};
pub use spec::{CdiSpec, MAX_SPEC, Syntax};

#[cfg(test)]
mod tests;
