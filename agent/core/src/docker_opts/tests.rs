use super::*;

const ENV: &str =
    "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.4.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn render(opts: &DockerOpts) -> String {
    opts.render(&EnvFile::parse(ENV).unwrap()).unwrap()
}

#[test]
fn without_options_it_prints_both_forms_as_the_script_does() {
    let expected = "DOCKER_OPT_BIP=\"--bip=10.100.4.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
                    DOCKER_OPT_MTU=\"--mtu=1450\"\n\
                    DOCKER_OPTS=\" --bip=10.100.4.1/24 --ip-masq=false --mtu=1450\"\n";
    assert_eq!(render(&DockerOpts::default()), expected);
    let neither = DockerOpts { individual: false, combined: false, ..DockerOpts::default() };
    assert_eq!(render(&neither), expected);
}

#[test]
fn each_form_alone_another_key_and_no_masquerading() {
    let combined = DockerOpts {
        individual: false,
        key: "DOCKER_NETWORK_OPTIONS".to_owned(),
        ip_masq: false,
        ..DockerOpts::default()
    };
    assert_eq!(render(&combined), "DOCKER_NETWORK_OPTIONS=\" --bip=10.100.4.1/24 --mtu=1450\"\n");
    let individual = DockerOpts { combined: false, ..DockerOpts::default() };
    assert!(!render(&individual).contains("DOCKER_OPTS"));
}

#[test]
fn systemd_and_json_say_the_same_in_their_own_ways() {
    let systemd = DockerOpts { format: Format::Systemd, individual: false, ..DockerOpts::default() };
    assert_eq!(render(&systemd), "DOCKER_OPTS=\"--bip=10.100.4.1/24 --ip-masq=false --mtu=1450\"\n");
    let json = DockerOpts { format: Format::Json, ..DockerOpts::default() };
    assert_eq!(render(&json), "{\n  \"bip\": \"10.100.4.1/24\",\n  \"ip-masq\": false,\n  \"mtu\": 1450\n}\n");
}

#[test]
fn a_key_that_a_shell_would_run_is_refused() {
    for key in ["", "1A", "A B", "A=1", "$(reboot)", "A;B"] {
        let opts = DockerOpts { key: key.to_owned(), ..DockerOpts::default() };
        assert!(opts.render(&EnvFile::parse(ENV).unwrap()).is_err(), "{key:?}");
    }
}

/// A shell reads what we print as it would read the script's own output: the values come out whole.
#[test]
fn a_shell_that_sources_the_output_has_the_options() {
    let script = format!("{}printf '%s|%s' \"$DOCKER_OPT_MTU\" \"$DOCKER_OPTS\"", render(&DockerOpts::default()));
    let output = match std::process::Command::new("/bin/sh").arg("-c").arg(script).output() {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: there is no /bin/sh to ask ({error})");
            return;
        }
    };
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "--mtu=1450| --bip=10.100.4.1/24 --ip-masq=false --mtu=1450");
}
