//! The Singularity Image Format: headers, descriptors, objects.
