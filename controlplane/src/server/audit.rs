//! The audit log: each change and who made it, as one JSON object a line in `audit.log` of the data directory. The
//! administrators' changes are in `audit-admin.log` too, where nobody else's lines push theirs out. Neither ever has a
//! secret.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use super::caller::Peer;
use flatnet_plane::clock;
use flatnet_plane::identity::{Holder, Identity};
use flatnet_plane::seats::source;

/// The size in bytes beyond which a file is put aside as `….log.1`: some 100,000 lines.
const LIMIT: u64 = 16 * 1024 * 1024;
/// The time within which lines are counted together.
const LINES_WINDOW: Duration = Duration::from_secs(60);
/// The most lines of one node, or of one address without a certificate, in that time: a node that joins ten networks
/// has some twenty.
const LINES: u32 = 60;
/// The most lines among them about refused calls.
const REFUSALS: u32 = 10;
/// The most callers told apart; beyond, all others count as one.
const CALLERS: usize = 4096;

/// The audit log.
pub struct Audit {
    all: Log,
    of_admins: Log,
    pace: Mutex<Pace>,
}

/// One file of the audit log.
struct Log {
    path: PathBuf,
    file: Mutex<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    /// The time, in RFC 3339.
    time: String,
    /// A certificate's name, or `local`.
    who: String,
    /// An address, or `socket`.
    from: String,
    action: &'a str,
    object: &'a str,
    /// `ok`, or the reason why not.
    result: &'a str,
    /// Lines of the same caller that were left out before this one.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "so serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Audit {
    /// Opens the log in `dir`.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let log = |name| {
            let path = dir.join(name);
            Ok::<_, std::io::Error>(Log { file: Mutex::new(open(&path)?), path })
        };
        Ok(Self { all: log("audit.log")?, of_admins: log("audit-admin.log")?, pace: Mutex::default() })
    }

    /// Notes a change that was made or tried.
    pub fn note<T>(&self, peer: &Peer, action: &str, object: &str, result: &Result<T, Status>) {
        let is_admin = match peer {
            Peer::Local => true,
            Peer::Remote { holder, .. } => matches!(holder, Some(Holder { identity: Identity::Admin(_), .. })),
        };
        let left_out = if is_admin { Some(0) } else { self.pace(peer, result.is_err()) };
        let Some(left_out) = left_out else { return };
        let message = match result {
            Ok(_) => "ok",
            Err(status) => status.message(),
        };
        let line = Line {
            time: humantime::format_rfc3339_millis(clock::now()).to_string(),
            who: peer.who(),
            from: peer.from(),
            action,
            object,
            result: message,
            left_out,
        };
        // The value has only strings and numbers, so this cannot fail.
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        for log in [Some(&self.all), is_admin.then_some(&self.of_admins)].into_iter().flatten() {
            if let Err(error) = log.write(&text) {
                // The change has been made; that it is not in the log must at least be seen.
                tracing::error!(path = %log.path.display(), %error, action, object, "the audit log cannot be written");
            }
        }
    }

    /// Returns the number of lines left out before it if one more line of `peer` is to be written; `None` if it is left
    /// out too.
    fn pace(&self, peer: &Peer, refused: bool) -> Option<u32> {
        let who = match peer {
            Peer::Remote { address, holder: None } => source(*address).to_string(),
            _ => peer.who(),
        };
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).line(who, refused)
    }
}

/// The number of lines each caller wrote lately.
struct Pace {
    began: Instant,
    callers: HashMap<String, Written>,
}

#[derive(Default)]
struct Written {
    lines: u32,
    refusals: u32,
    left_out: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { began: Instant::now(), callers: HashMap::new() }
    }
}

impl Pace {
    fn line(&mut self, who: String, refused: bool) -> Option<u32> {
        if self.began.elapsed() >= LINES_WINDOW {
            self.began = Instant::now();
            self.callers.retain(|_, written| {
                (written.lines, written.refusals) = (0, 0);
                written.left_out > 0
            });
        }
        let who = if self.callers.len() < CALLERS || self.callers.contains_key(&who) { who } else { String::new() };
        let written = self.callers.entry(who).or_default();
        if written.lines >= LINES || (refused && written.refusals >= REFUSALS) {
            written.left_out = written.left_out.saturating_add(1);
            return None;
        }
        written.lines += 1;
        written.refusals += u32::from(refused);
        Some(std::mem::take(&mut written.left_out))
    }
}

impl Log {
    fn write(&self, line: &[u8]) -> std::io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line)?;
        self.put_aside(&mut file)
    }

    fn put_aside(&self, file: &mut File) -> std::io::Result<()> {
        if file.metadata()?.len() > LIMIT {
            match std::fs::rename(&self.path, self.path.with_extension("log.1")) {
                // The file was put aside before, when the new one could not be opened.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            *file = open(&self.path)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::SystemTime;

    use flatnet_model::NodeId;

    use super::*;

    fn node(number: u128) -> Peer {
        let identity = Identity::Node(NodeId::new(number));
        let (lifetime, not_after) = (Duration::from_secs(60), SystemTime::UNIX_EPOCH);
        let holder = Some(Holder { identity, key_hash: String::new(), lifetime, not_after });
        Peer::Remote { address: Ipv4Addr::LOCALHOST.into(), holder }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nodes_and_strangers_do_pushes_no_administrators_line_out() {
        let dir = std::env::temp_dir().join(format!("flatnet-audit-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let audit = Audit::open(&dir).unwrap();
        let ok = || Ok::<(), Status>(());
        let refused = || Err::<(), _>(Status::permission_denied("not this node's"));
        audit.note(&Peer::Local, "revoke-node", "x", &ok());
        let long = "\u{10ffff}".repeat(200);
        // Two nodes and a stranger are refused calls and granted calls, for ten minutes.
        let stranger = Peer::Remote { address: Ipv4Addr::LOCALHOST.into(), holder: None };
        for _ in 0..10 {
            for peer in [node(1), node(2), stranger.clone()] {
                for _ in 0..5_000 {
                    audit.note(&peer, "release", &long, &refused());
                    audit.note(&peer, "acquire", &long, &ok());
                }
            }
            tokio::time::advance(LINES_WINDOW).await;
        }
        audit.note(&node(1), "acquire", "y", &ok());
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let lines: Vec<serde_json::Value> =
            read("audit.log").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2 + 10 * 3 * usize::try_from(LINES).unwrap(), "each has its own, and no more");
        assert_eq!(lines[0]["action"], "revoke-node");
        let of_one = lines.iter().filter(|line| line["who"] == node(1).who());
        let left_out: u64 = of_one.map(|line| line["left_out"].as_u64().unwrap_or(0)).sum();
        assert_eq!(left_out, 10 * u64::from(10_000 - LINES), "and says how many were left out");
        let count = |action: &str| lines.iter().filter(|line| line["action"] == action).count();
        assert_eq!(count("release"), 10 * 3 * usize::try_from(REFUSALS).unwrap());
        assert_eq!(read("audit-admin.log").lines().count(), 1);
        for number in 0..10_000 {
            audit.note(&node(number + 10), "release", "x", &refused());
        }
        assert!(audit.pace.lock().unwrap().callers.len() <= CALLERS + 1, "bounded");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
