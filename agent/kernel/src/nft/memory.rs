//! The memory of which ruleset the table was loaded from, and how the kernel's table looked right after. As long as it
//! looks the same, that ruleset is the one that is loaded. The memory is kept in a file too, so that an agent that
//! starts again need not swap.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flatnet_core::object::Ruleset;

use super::table::Digest;

/// First line of the file, before the digest. Another format gets another number.
const MAGIC: &str = "flatnet-ruleset 1 ";
/// Bytes of the largest file that is read. No body comes near, so a longer file is not ours.
const LARGEST: u64 = 4 * 1024 * 1024;

/// The ruleset that was loaded last, with the file that remembers it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    file: Option<PathBuf>,
    loaded: Option<(Digest, Ruleset)>,
}

impl Memory {
    /// Reads what `file` remembers. If it cannot be read, nothing is remembered, which costs one swap.
    pub(super) fn load(file: Option<PathBuf>) -> Self {
        let loaded = file.as_deref().and_then(|file| read(file).ok()).and_then(|text| parse(&text));
        Self { file, loaded }
    }

    /// Returns the ruleset whose table looks like `digest`.
    pub(super) fn recall(&self, digest: Digest) -> Option<&Ruleset> {
        self.loaded.as_ref().filter(|(known, _)| *known == digest).map(|(_, ruleset)| ruleset)
    }

    /// Returns how the kernel's table looked right after a ruleset was loaded last.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.loaded.as_ref().map(|(digest, _)| *digest)
    }

    /// Remembers a swap. If the file cannot be written, that costs a swap at the next start; it is not worth failing
    /// for.
    pub(super) fn remember(&mut self, digest: Digest, ruleset: Ruleset) {
        if let Some(file) = &self.file
            && let Err(error) = write(file, digest, &ruleset)
        {
            tracing::warn!(%error, file = %file.display(), "cannot remember the loaded ruleset");
        }
        self.loaded = Some((digest, ruleset));
    }

    /// Forgets the table, which is gone, or about to be another.
    pub(super) fn forget(&mut self) {
        if let (Some(file), true) = (&self.file, self.loaded.is_some()) {
            // If it is already gone, that is just as well; and a file that stays describes a table that cannot be
            // matched again.
            let _ = fs::remove_file(file);
        }
        self.loaded = None;
    }
}

fn read(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > LARGEST {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    fs::read_to_string(file)
}

fn parse(text: &str) -> Option<(Digest, Ruleset)> {
    let (first, body) = text.split_once('\n')?;
    let digest = u128::from_str_radix(first.strip_prefix(MAGIC)?, 16).ok()?;
    Some((Digest(digest), Ruleset { body: body.to_owned() }))
}

/// Writes the file by rename, so that a crash leaves the old file or the new.
fn write(file: &Path, digest: Digest, ruleset: &Ruleset) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    out.write_all(format!("{MAGIC}{:032x}\n{}", digest.0, ruleset.body).as_bytes())?;
    drop(out);
    fs::rename(temporary, file)
}
