use super::*;

const DOCKER: &str = r#"-P INPUT ACCEPT
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-ISOLATION-STAGE-2
-N DOCKER-USER
-A FORWARD -s 10.100.0.0/16 -d 10.100.0.0/16 -m comment --comment "flatnet:default" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -d 10.100.1.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "flatnet:default:back" -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
"#;

#[test]
fn a_policy_and_a_rule_of_a_chain_that_is_led_to_can_drop() {
    assert!(Listing::parse(DOCKER).can_drop(IptablesChain::Forward));
    assert!(!Listing::parse(DOCKER).can_drop(IptablesChain::Input));
    let without_policy = DOCKER.replace("-P FORWARD DROP", "-P FORWARD ACCEPT");
    assert!(Listing::parse(&without_policy).can_drop(IptablesChain::Forward));
    let without_drop = without_policy.replace("-j DROP", "-j RETURN");
    assert!(!Listing::parse(&without_drop).can_drop(IptablesChain::Forward), "our own rules do not count");
}

#[test]
fn chains_that_lead_to_each_other_are_read_once() {
    let circle = "-N A\n-N B\n-A INPUT -j A\n-A A -j B\n-A B -j A\n-A B -g A\n";
    assert!(!Listing::parse(circle).can_drop(IptablesChain::Input));
}

#[test]
fn a_rule_behind_what_could_drop_is_not_the_one_wanted() {
    let found = Listing::parse(DOCKER).specifications();
    let head = &found[&(IptablesChain::Forward, "flatnet:default".to_owned())];
    assert_eq!(head.matches.join(" "), "-s 10.100.0.0/16 -d 10.100.0.0/16");
    let behind = &found[&(IptablesChain::Forward, "flatnet:default:back".to_owned())];
    assert_eq!(behind.matches.join(" "), "-d 10.100.1.0/24 -m conntrack --ctstate RELATED,ESTABLISHED !ineffective");
}

#[test]
fn a_rule_that_is_there_twice_or_drops_is_not_the_one_wanted() {
    let line = "-A INPUT -p udp -m udp --dport 8472 -m comment --comment flatnet:a:tunnel -j ACCEPT\n";
    let key = (IptablesChain::Input, "flatnet:a:tunnel".to_owned());
    assert_eq!(Listing::parse(line).specifications()[&key].matches.join(" "), "-p udp -m udp --dport 8472");
    let effective = |text: &str| !Listing::parse(text).specifications()[&key].matches.contains(&INEFFECTIVE.to_owned());
    assert!(effective(line));
    assert!(!effective(&line.repeat(2)));
    assert!(!effective(&line.replace("ACCEPT", "DROP")));
    assert_eq!(Listing::parse(&line.repeat(2)).ours().len(), 2);
}

#[test]
fn words_in_quotes_hold_together() {
    assert_eq!(
        split(r#"-m comment --comment "a \"b\" c" -j X"#),
        ["-m", "comment", "--comment", "a \"b\" c", "-j", "X"]
    );
    assert_eq!(split(r#"--comment """#), ["--comment", ""]);
    assert_eq!(split("  -A   X "), ["-A", "X"]);
}
