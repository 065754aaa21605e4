//! Writing files so that they are there whole or not at all.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes a directory, with its parents, if it is not there; `mode` holds for it in either case.
pub fn create_dir(dir: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// Puts `bytes` at `path`: after a crash the old file is there or the new one. The bytes are written beside `path`
/// first. If somebody else laid something there, it is neither followed nor written to, also in a directory that others
/// may write.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // A file left by a crash may have any mode.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // O_EXCL follows no link.
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&new, path));
    if let Err(error) = written {
        // Half a file on a full disk would be in the way of the next attempt.
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    // Until its directory is on disk a power cut may bring the old file back, or none.
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => std::fs::File::open(".")?.sync_all(),
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planted_where_a_file_is_written_is_neither_followed_nor_written_to() {
        let dir = std::env::temp_dir().join(format!("flatnet-files-{}", std::process::id()));
        create_dir(&dir, 0o777).unwrap();
        let (victim, path, new) = (dir.join("victim"), dir.join("key"), dir.join("key.new"));
        std::fs::write(&victim, "theirs").unwrap();
        for plant in [
            (|victim: &Path, new: &Path| std::os::unix::fs::symlink(victim, new).unwrap()) as fn(&Path, &Path),
            |victim, new| std::fs::hard_link(victim, new).unwrap(),
            |_, new| {
                std::fs::write(new, "open to all").unwrap();
                std::fs::set_permissions(new, std::fs::Permissions::from_mode(0o666)).unwrap();
            },
            |victim, new| std::os::unix::fs::symlink(victim, new.with_file_name("key")).unwrap(),
        ] {
            let _ = std::fs::remove_file(&path);
            plant(&victim, &new);
            replace(&path, b"secret", 0o600).unwrap();
            assert_eq!(std::fs::read(&victim).unwrap(), b"theirs");
            let meta = std::fs::symlink_metadata(&path).unwrap();
            assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600);
            assert_eq!(std::fs::read(&path).unwrap(), b"secret");
            assert!(std::fs::symlink_metadata(&new).is_err());
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
