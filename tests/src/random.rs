//! Random choices that can be made again: a case prints its seed when it fails.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small generator (splitmix64): good enough to choose moments and victims.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// From the variable `SITULA_TEST_SEED`, or else from the clock.
    #[must_use]
    pub fn new() -> Self {
        let given = std::env::var("SITULA_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let clock = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        };
        Self::with_seed(given.unwrap_or_else(clock))
    }

    /// From a known seed.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// The seed it was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// A time below `limit`; short ones are as likely as long ones, on a scale of factors of ten, because
    /// most of what can go wrong goes wrong in the first milliseconds.
    pub fn moment(&mut self, limit: Duration) -> Duration {
        let shrink = 10_u32.pow(u32::try_from(self.below(4)).unwrap_or(0));
        let micros = u64::try_from((limit / shrink).as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros))
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let draw = |seed| {
            let mut random = Random::with_seed(seed);
            (0..20).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let mut random = Random::with_seed(1);
        let limit = Duration::from_millis(100);
        assert!((0..1000).map(|_| random.moment(limit)).all(|moment| moment < limit));
    }
}
