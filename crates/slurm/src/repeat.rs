//! The run-length lists that Slurm prints per node: `2(x3),1` is 2, 2, 2, 1.
//!
//! They stay compressed, because the repeat counts come from the environment and expanding them
//! would let one short variable ask for gigabytes.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::RepeatError;
use crate::ids::{NodeIndex, parse_digits};

/// One value per node of a job or step, as in `SLURM_TASKS_PER_NODE` or `SLURM_JOB_CPUS_PER_NODE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepeatList {
    /// (value, number of consecutive nodes that have it); the second is never zero.
    runs: Vec<(u32, u32)>,
}

impl RepeatList {
    /// Runs accepted in one list. The worst real case is one run per node.
    pub const MAX_RUNS: usize = crate::hostlist::MAX_HOSTS;

    /// Gives the value for a node, or `None` past the end of the list.
    pub fn get(&self, node: NodeIndex) -> Option<u32> {
        let mut left = node.0;
        for &(value, times) in &self.runs {
            if left < times {
                return Some(value);
            }
            left -= times;
        }
        None
    }

    /// Counts the nodes that the list covers.
    pub fn n_nodes(&self) -> u64 {
        self.runs.iter().map(|&(_, times)| u64::from(times)).sum()
    }

    /// Adds up the values over all nodes, saturating.
    pub fn total(&self) -> u64 {
        self.runs.iter().fold(0u64, |sum, &(value, times)| {
            sum.saturating_add(u64::from(value).saturating_mul(times.into()))
        })
    }
}

impl FromStr for RepeatList {
    type Err = RepeatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut runs = Vec::new();
        for element in text.split(',') {
            let bad = || RepeatError::BadElement { element: element.chars().take(40).collect() };
            if runs.len() == Self::MAX_RUNS {
                return Err(RepeatError::TooMany { limit: Self::MAX_RUNS });
            }
            let (value, times) = match element.split_once("(x") {
                Some((value, rest)) => (value, rest.strip_suffix(')').ok_or_else(bad)?),
                None => (element, "1"),
            };
            let value = parse_digits(value).ok_or_else(bad)?;
            let times = parse_digits(times).filter(|&n| n > 0).ok_or_else(bad)?;
            runs.push((value, times));
        }
        Ok(Self { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_node() {
        let list: RepeatList = "2(x3),1".parse().expect("the documented form");
        let values: Vec<_> = (0..5).map(|i| list.get(NodeIndex(i))).collect();
        assert_eq!(values, [Some(2), Some(2), Some(2), Some(1), None]);
        assert_eq!((list.n_nodes(), list.total()), (4, 7));
    }

    #[test]
    fn a_huge_repeat_costs_nothing() {
        let list: RepeatList = "4294967295(x4294967295),3".parse().expect("within range");
        assert_eq!(list.get(NodeIndex(u32::MAX)), Some(3));
        assert_eq!(list.n_nodes(), 1 << 32);
    }

    #[test]
    fn malformed_lists_are_refused() {
        for text in ["", ",", "1,", "2(x)", "2(x0)", "2(x3", "2x3", "(x3)", "-1", "+1", "2(x3)1", "a", "1 "] {
            assert!(text.parse::<RepeatList>().is_err(), "{text:?}");
        }
    }
}
