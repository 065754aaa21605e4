use super::*;

#[test]
fn what_is_broken_is_said_first_and_among_equals_what_explains_most() {
    let checks = vec![
        Check::ok("rights", ""),
        Check::warning("iptables", "", ""),
        Check::failure("agent-problem", "the store refuses", ""),
        Check::ok("modules", ""),
        Check::failure("nft-drops", "", ""),
        Check::warning("clock", "", ""),
    ];
    let names: Vec<&str> = ranked(checks).iter().map(|check| check.name).collect();
    assert_eq!(names, ["agent-problem", "nft-drops", "iptables", "clock", "rights", "modules"]);
}
