//! Image sources, content store, registry client, flattening and conversion.
