//! The administrator's page against the code.

use situla_policy::{KNOWN_OPTIONS, Policy};

const PAGE: &str = include_str!("../../../docs/reference/policy.md");

#[test]
fn the_example_of_the_page_is_a_policy() {
    let (_, rest) = PAGE.split_once("```toml\n").expect("the page has an example");
    let (example, _) = rest.split_once("```").expect("the example ends");
    let policy = Policy::parse(example, "policy.md").expect("the example is well formed");
    assert_ne!(policy.registry, Policy::default().registry);
}

#[test]
fn the_page_lists_all_options() {
    let (_, list) = PAGE.split_once("Names that can be refused: ").expect("the page lists the names");
    let listed: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
    assert_eq!(listed, KNOWN_OPTIONS);
}
