//! Finds the program that holds a UDP port we need: "address already in use" alone does not lead anybody to it.

use std::fs;

use crate::netlink::socket::Refusal;

/// Stands for odd characters in a process's name: `comm` may be any bytes, 15 of them.
const ODD: char = '?';

/// Returns the refusal of a device whose `port` somebody has, naming the holder.
pub(crate) fn refusal(port: u16) -> Refusal {
    let holder = match inode(port) {
        // The kernel's own sockets have no file.
        Some(0) => "by the kernel for another tunnel device".to_owned(),
        Some(inode) => process(inode).map_or_else(other, |process| format!("by {process}")),
        None => other(),
    };
    Refusal { errno: libc::EADDRINUSE, reason: format!("UDP port {port} is in use {holder}") }
}

fn other() -> String {
    "by another program on this host".to_owned()
}

/// Returns the inode of the socket that is bound to `port`, in the network namespace of this thread.
fn inode(port: u16) -> Option<u64> {
    let tables = ["udp", "udp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    tables.into_iter().flatten().find_map(|table| in_table(&table, port))
}

/// Finds the inode in a table (Documentation/networking/proc_net_tcp.rst). The port is hexadecimal, and the inode is
/// the tenth column.
fn in_table(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace();
        let (_, bound) = columns.nth(1)?.rsplit_once(':')?;
        (u16::from_str_radix(bound, 16).ok()? == port).then(|| columns.nth(7)?.parse().ok()).flatten()
    })
}

/// Returns `PID/name` of a process that has the socket of that inode open, if we may see it.
fn process(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut holders = pids.filter(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == wanted.as_str())
    });
    let pid = holders.next()?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { ODD };
    Some(format!("{pid}/{}", name.trim_end().chars().map(plain).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_that_has_a_port_is_named() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = std::net::UdpSocket::bind(address).unwrap();
            let port = socket.local_addr().unwrap().port();
            let reason = refusal(port).reason;
            let holder = format!("UDP port {port} is in use by {}/", std::process::id());
            assert!(reason.starts_with(&holder) && reason.len() > holder.len(), "{reason}");
        }
    }

    #[test]
    fn a_socket_of_the_kernels_has_no_file() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n \
            1201: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000 0\n";
        assert_eq!((in_table(table, 8472), in_table(table, 8473)), (Some(0), None));
        assert_eq!(in_table("head\nnonsense\n: :\n", 1), None);
    }
}
