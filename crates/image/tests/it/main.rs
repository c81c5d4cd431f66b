//! Tests of the image crate against archives built here and against independent tools.

mod convert;
mod hostile;
#[path = "../support/layers.rs"]
mod layers;
mod logins;
mod merge;
#[path = "../../../../fuzz/mutate.rs"]
mod mutate;
mod mutations;
mod oras;
mod push;
mod registry;
mod sources;
mod store;
mod tar;
mod tar_builder;
mod targets;
mod tools;
mod transport;
mod whole;
