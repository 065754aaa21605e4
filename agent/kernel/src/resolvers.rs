//! The resolvers that this host asks for names: resolv.conf(5).

use std::io::Read;
use std::net::IpAddr;

/// The file that the C library reads.
const CONF: &str = "/etc/resolv.conf";
/// The file with the resolvers that systemd-resolved asks, for when [`CONF`] names only its stub on the loopback.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// Bytes read of either file: some hundred lines, of which glibc takes three.
const LIMIT: u64 = 64 * 1024;

/// Returns the resolvers' addresses; empty if there are none, or none that can be read.
pub(crate) fn read() -> Vec<IpAddr> {
    let found = servers(&text(CONF));
    if found.iter().any(|address| !address.is_loopback()) { found } else { servers(&text(BEHIND_STUB)) }
}

fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    // A file that cannot be read names no resolvers.
    let _ = std::fs::File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the addresses after `nameserver`. An address with a zone is link-local and left out.
fn servers(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    named.filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_nothing_else() {
        let text = "# nameserver 10.9.9.9\nsearch example.org\n nameserver\t10.0.0.2 \nnameserver fd00::53\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver not-one\noptions edns0 trust-ad\n;nameserver 1.1.1.1";
        let expected: Vec<IpAddr> = ["10.0.0.2", "fd00::53"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(servers(text), expected);
    }
}
