//! Who changed what: one JSON object a line in `audit.log` of the data directory. Never a secret.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tonic::Status;

use super::caller::Peer;
use crate::clock;

/// The file is put aside as `audit.log.1` beyond this, in bytes: some 100,000 lines.
const LIMIT: u64 = 16 * 1024 * 1024;

/// The log.
pub struct Audit {
    path: PathBuf,
    file: Mutex<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339.
    time: String,
    /// A certificate's name, or `local`.
    who: String,
    /// An address, or `socket`.
    from: String,
    action: &'a str,
    object: &'a str,
    /// `ok`, or why not.
    result: &'a str,
}

impl Audit {
    /// Opens the log in `dir`.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let path = dir.join("audit.log");
        let file = Mutex::new(open(&path)?);
        Ok(Self { path, file })
    }

    /// Notes what was done, or tried.
    pub fn note<T>(&self, peer: &Peer, action: &str, object: &str, result: &Result<T, Status>) {
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
        };
        // Strings only: this cannot fail.
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.write_all(&text).and_then(|()| self.put_aside(&mut file));
        if let Err(error) = written {
            // What was done is done; that it is not in the log must at least be seen.
            tracing::error!(path = %self.path.display(), %error, action, object, "the audit log cannot be written");
        }
    }

    fn put_aside(&self, file: &mut File) -> std::io::Result<()> {
        if file.metadata()?.len() > LIMIT {
            match std::fs::rename(&self.path, self.path.with_extension("log.1")) {
                // Put aside before, when the new one could not be opened.
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
