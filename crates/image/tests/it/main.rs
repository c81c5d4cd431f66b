//! Tests of the image crate against archives built here and against independent tools.

mod convert;
mod hostile;
mod logins;
mod merge;
mod registry;
mod store;
mod tar;
mod tar_builder;
mod tools;
mod transport;
mod whole;
