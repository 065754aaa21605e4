use flatnet_model::BackendConfig;
use proptest::prelude::*;

use super::*;
use crate::fixture::config;

fn dual() -> EnvFile {
    let config = config(Some("10.100.0.0/16"), Some("fd00:100::/48"), BackendConfig::HostGw);
    EnvFile::new(&config, "10.100.4.0-24&fd00:100:0:4::-64".parse().unwrap(), Mtu::new(1450).unwrap(), true)
}

#[test]
fn it_is_what_flannel_writes() {
    let expected = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.4.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00:100::/48\nFLANNEL_IPV6_SUBNET=fd00:100:0:4::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    assert_eq!(dual().to_string(), expected);
    let v4 = config(Some("10.100.0.0/16"), None, BackendConfig::HostGw);
    let v4 = EnvFile::new(&v4, "10.100.4.0-24".parse().unwrap(), Mtu::new(1500).unwrap(), false);
    assert_eq!(
        v4.to_string(),
        "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.4.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
    );
}

#[test]
fn the_subnets_that_were_held_are_read_back() {
    let read = EnvFile::parse(&dual().to_string()).unwrap();
    assert_eq!(read, dual());
    assert_eq!(read.subnets().unwrap().to_string(), "10.100.4.0-24&fd00:100:0:4::-64");
}

#[test]
fn what_is_not_understood_is_an_error_with_its_line() {
    let good = dual().to_string();
    assert!(EnvFile::parse(&format!("# ours\n\nOTHER=1\n{good}")).is_ok());
    for (bad, line) in [
        (good.replace("1450", "67"), 5),
        (good.replace("1450", "$(reboot)"), 5),
        (good.replace("true", "yes"), 6),
        (good.replace("10.100.4.1/24", "10.100.4.1"), 2),
        (format!("{good}FLANNEL_MTU=1400\n"), 7),
        (format!("{good}export\n"), 7),
        (good.replace("FLANNEL_MTU=1450\n", ""), 0),
        (good.replace("FLANNEL_NETWORK=10.100.0.0/16\n", ""), 0),
        (good.replace("10.100.4.1/24", "10.101.4.1/24"), 0),
        (String::new(), 0),
    ] {
        assert_eq!(EnvFile::parse(&bad).unwrap_err().line, line, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_but_never_a_panic(text in "(FLANNEL_[A-Z0-9_]{0,12}=[0-9a-f:./]{0,20}\n|.{0,20}\n){0,8}") {
        if let Ok(read) = EnvFile::parse(&text) {
            prop_assert_eq!(EnvFile::parse(&read.to_string()), Ok(read));
        }
    }
}
