//! What decides over the bytes of an image, beside its manifest.

use serde::{Deserialize, Serialize};
use situla_oci::Digest;

use crate::convert::ConvertOptions;

/// Version of the conversion: it grows with every change that gives the same image other bytes, be it in what is
/// added to an image, in how layers are merged, or in how SquashFS is written.
pub const CONVERTER_VERSION: u32 = 1;

/// Hexadecimal digits of a recipe's digest in file names. A store has a handful of recipes for a manifest.
const SHORT: usize = 12;

/// How an image is made of its manifest: the same manifest and the same recipe give the same bytes, with any
/// number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// [`CONVERTER_VERSION`] of the program that made it.
    pub converter: u32,
    /// Version of libzstd, as `ZSTD_versionNumber` gives it: 10507 is 1.5.7. Another one may compress otherwise.
    pub zstd: u32,
    /// Level of compression.
    pub level: i32,
    /// `SOURCE_DATE_EPOCH`: seconds since 1970 that no time in the image is later than.
    pub source_date_epoch: Option<u32>,
}

impl Recipe {
    /// Of what is kept as it came: nothing of this program has a part in its bytes.
    pub const VERBATIM: Self = Self { converter: 0, zstd: 0, level: 0, source_date_epoch: None };

    /// The recipe by which this program converts with `options`.
    #[must_use]
    pub fn of(options: &ConvertOptions) -> Self {
        Recipe {
            converter: CONVERTER_VERSION,
            zstd: zstd::zstd_safe::version_number(),
            level: options.zstd_level,
            source_date_epoch: options.source_date_epoch,
        }
    }

    /// What stores of version 1 did not write down: there was one converter, one level, and no epoch.
    #[must_use]
    pub(crate) fn unwritten() -> Self {
        Recipe { converter: 1, zstd: 0, level: 3, source_date_epoch: None }
    }

    /// The recipe in names of files.
    #[must_use]
    pub(crate) fn short(&self) -> String {
        let Recipe { converter, zstd, level, source_date_epoch } = self;
        let epoch = source_date_epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string());
        let text = format!("converter {converter} zstd {zstd} level {level} epoch {epoch}");
        Digest::sha256(text.as_bytes()).hex().chars().take(SHORT).collect()
    }

    /// Whether an image of `other` serves whoever asks for this one: what users choose is equal, and only
    /// versions of programs are not. What is kept as it came serves everybody.
    #[must_use]
    pub(crate) fn is_served_by(&self, other: &Recipe) -> bool {
        *other == Self::VERBATIM
            || (self.level, self.source_date_epoch) == (other.level, other.source_date_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_recipes_are_fixed_and_tell_all_parts_apart() {
        let recipe = Recipe { converter: 1, zstd: 10507, level: 3, source_date_epoch: None };
        // Another name would make every store forget its images.
        assert_eq!(recipe.short(), "baec4ad4c803");
        let others = [
            Recipe { converter: 2, ..recipe },
            Recipe { zstd: 10508, ..recipe },
            Recipe { level: 4, ..recipe },
            Recipe { source_date_epoch: Some(0), ..recipe },
            Recipe { source_date_epoch: Some(1), ..recipe },
        ];
        let mut names: Vec<String> = others.iter().map(Recipe::short).collect();
        names.push(recipe.short());
        names.sort();
        names.dedup();
        assert_eq!(names.len(), others.len() + 1);
        let served: Vec<bool> = others.iter().map(|other| recipe.is_served_by(other)).collect();
        assert_eq!(served, [true, true, false, false, false]);
        let dated = Recipe { source_date_epoch: Some(1), ..recipe };
        assert!(recipe.is_served_by(&Recipe::VERBATIM) && dated.is_served_by(&Recipe::VERBATIM));
        assert!(!Recipe::VERBATIM.is_served_by(&recipe));
    }

    #[test]
    fn a_recipe_is_what_the_program_does() {
        let recipe = Recipe::of(&ConvertOptions { source_date_epoch: Some(7), ..ConvertOptions::default() });
        assert_eq!(
            (recipe.converter, recipe.level, recipe.source_date_epoch),
            (CONVERTER_VERSION, 3, Some(7))
        );
        assert!(recipe.zstd >= 10_000, "{recipe:?}");
    }
}
