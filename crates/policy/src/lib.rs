//! Site policy: `decide(request, policy)` gives a verdict with reasons.
//!
//! A pure function of two values. It opens no file and resolves no name, so the same request and
//! policy give the same verdict at submission, on the node and in a replay of last month's records.
//! The caller is responsible for the truth of the request: host paths resolved, the digest the one
//! that will be mounted. `docs/reference/policy.md` is the administrator's page.

mod decide;
mod glob;
mod policy;
mod request;
mod verdict;

pub use decide::decide;
pub use glob::{GlobError, ImageGlob};
pub use policy::{
    FileRules, KNOWN_OPTIONS, MAX_POLICY_BYTES, MAX_RULES, Mode, OptionRule, OptionRules, PathPrefix, Policy,
    PolicyError, RegistryRules,
};
pub use request::{BindUse, Image, RegistryImage, Request, RequestedOption, Subject};
pub use verdict::{Decision, Reason, Rule, Verdict};
