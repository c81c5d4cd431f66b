//! Tests of the image crate against archives built here and against independent tools.

mod merge;
mod tar;
mod tar_builder;
