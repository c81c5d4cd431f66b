//! The answer, in the form that plans and records embed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::Mode;

/// What happens to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It runs. Reasons may still be present: they are what audit mode saw.
    Allow,
    /// It runs, and the user is shown the reasons.
    Warn,
    /// It does not run.
    Deny,
}

/// A decision and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What happens.
    pub decision: Decision,
    /// The mode that turned the reasons into this decision.
    pub mode: Mode,
    /// The policy that was asked, by the name its loader gave it.
    pub policy: String,
    /// Every rule that the request breaks, not just the first.
    pub reasons: Vec<Reason>,
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule.
    pub rule: Rule,
    /// What the request did, naming the thing.
    pub message: String,
    /// What the user can do about it.
    pub remedy: String,
}

/// Where a rule is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The configuration key, such as `registry.allow`.
    pub key: String,
    /// The entry under that key that decided, if one did.
    pub entry: Option<String>,
    /// The file.
    pub source: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(entry) => write!(f, "{} {entry:?} in {}", self.key, self.source),
            None => write!(f, "{} in {}", self.key, self.source),
        }
    }
}

impl fmt::Display for Reason {
    /// One line, for an `error:` or `warning:` prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}); {}", self.message, self.rule, self.remedy)
    }
}
