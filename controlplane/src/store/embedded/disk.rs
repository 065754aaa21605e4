//! The file: three tables of redb. Every commit waits for the disk (`fsync(2)`).

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flatnet_model::{EtcdLease, Revision};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use flatnet_plane::store::KeyValue;
use flatnet_plane::store::data::{Changes, Kept};

/// Key → create revision, revision of the last change, lease (0: none), each 8 bytes big-endian, then the value.
const KEYS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("keys");
/// Lease → its time to live, in seconds.
const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");
/// The numbers `format` and `revision`.
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");
/// The version of the tables as described here.
const FORMAT: i64 = 1;
/// Pages redb may keep: the content is in memory already, and is read from the file once.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The reason why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be made, or its directory entry cannot be written.
    #[error("cannot open the store {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another process, or another part of this one, has it.
    #[error("the store {path} is in use")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or of another program.
    #[error("cannot use the store {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause, as redb gives it.
        reason: String,
    },
}

/// The disk's error on a read or write.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("it is in use")]
    InUse,
    #[error("{0}")]
    Other(String),
}

impl<E: Into<redb::Error>> From<E> for DiskError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            error => Self::Other(error.to_string()),
        }
    }
}

pub(super) struct Disk {
    path: PathBuf,
    /// The database; `None` after an error: redb refuses everything then.
    database: Option<Database>,
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<(Self, Kept), OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let is_new = !path.exists();
        // The file is the owner's alone from the first moment: it holds networks' keys and the tokens' hashes.
        drop(std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(io)?);
        if is_new && let Some(dir) = path.parent() {
            std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        }
        let mut disk = Self { path: path.to_owned(), database: None };
        let kept = disk.reopen().map_err(|error| match error {
            DiskError::InUse => OpenError::InUse { path: path.to_owned() },
            DiskError::Other(reason) => OpenError::Unusable { path: path.to_owned(), reason },
        })?;
        Ok((disk, kept))
    }

    /// Returns true if nothing was ever written into the store at `path`, which was opened just before.
    pub(super) fn is_blank(&self) -> bool {
        let meta = self.database.as_ref().and_then(|database| database.begin_read().ok());
        meta.is_some_and(|txn| matches!(txn.open_table(META), Err(redb::TableError::TableDoesNotExist(_))))
    }

    /// Opens the file anew and reads it.
    pub(super) fn reopen(&mut self) -> Result<Kept, DiskError> {
        self.database = None;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&self.path)?;
        let kept = read(&database)?;
        self.database = Some(database);
        Ok(kept)
    }

    /// Writes what changed; when this returns it is on the disk.
    pub(super) fn write(&mut self, changes: &Changes) -> Result<(), DiskError> {
        let database = self.database.as_ref().ok_or_else(|| DiskError::Other("the store is closed".to_owned()))?;
        let result = write(database, changes);
        if result.is_err() {
            self.database = None;
        }
        result
    }

    /// Writes a new file with all of `kept`; there is none if that fails.
    pub(super) fn write_new(path: &Path, kept: &Kept) -> Result<(), DiskError> {
        let io = |error: std::io::Error| DiskError::Other(format!("{}: {error}", path.display()));
        drop(std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(io)?);
        let written = Self::fill(path, kept);
        if written.is_err() {
            // An incomplete file could be taken for a whole one.
            let _ = std::fs::remove_file(path);
        }
        written
    }

    fn fill(path: &Path, kept: &Kept) -> Result<(), DiskError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        let changes = Changes {
            keys: kept.kvs.iter().map(|(key, kv)| (key.clone(), Some(kv.clone()))).collect(),
            leases: kept.leases.iter().map(|(id, ttl)| (*id, Some(*ttl))).collect(),
            revision: kept.revision,
        };
        write(&database, &changes)
    }
}

fn write(database: &Database, changes: &Changes) -> Result<(), DiskError> {
    let txn = database.begin_write()?;
    {
        let mut keys = txn.open_table(KEYS)?;
        for (key, value) in &changes.keys {
            match value {
                Some(kv) => drop(keys.insert(key.as_slice(), encode(kv).as_slice())?),
                None => drop(keys.remove(key.as_slice())?),
            }
        }
        let mut leases = txn.open_table(LEASES)?;
        for (id, ttl) in &changes.leases {
            match ttl {
                Some(ttl) => drop(leases.insert(id, ttl.as_secs())?),
                None => drop(leases.remove(id)?),
            }
        }
        let mut meta = txn.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", changes.revision)?;
    }
    txn.commit()?;
    Ok(())
}

fn read(database: &Database) -> Result<Kept, DiskError> {
    let txn = database.begin_read()?;
    let mut kept = Kept { revision: 1, ..Kept::default() };
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        // The file is new: like a new etcd, it is at revision 1.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(kept),
        Err(error) => return Err(error.into()),
    };
    match meta.get("format")?.map(|format| format.value()) {
        Some(FORMAT) => {}
        other => {
            return Err(DiskError::Other(format!("format {}, and this version reads {FORMAT}", other.unwrap_or(0))));
        }
    }
    kept.revision = meta.get("revision")?.map_or(1, |revision| revision.value());
    for entry in txn.open_table(KEYS)?.iter()? {
        let (key, value) = entry?;
        let kv = decode(key.value(), value.value()).ok_or_else(|| {
            DiskError::Other(format!("the record of key {:?} is too short", String::from_utf8_lossy(key.value())))
        })?;
        kept.kvs.insert(kv.key.clone(), kv);
    }
    for entry in txn.open_table(LEASES)?.iter()? {
        let (id, ttl) = entry?;
        kept.leases.insert(id.value(), Duration::from_secs(ttl.value()));
    }
    Ok(kept)
}

fn encode(kv: &KeyValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + kv.value.len());
    for number in [kv.create_revision, kv.mod_revision, kv.lease.map_or(0, |lease| lease.0)] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(&kv.value);
    bytes
}

fn decode(key: &[u8], bytes: &[u8]) -> Option<KeyValue> {
    let (numbers, value) = bytes.split_at_checked(24)?;
    let number = |index: usize| -> Option<Revision> {
        Some(i64::from_be_bytes(numbers.get(index * 8..index * 8 + 8)?.try_into().ok()?))
    };
    Some(KeyValue {
        key: key.to_vec(),
        value: value.to_vec(),
        create_revision: number(0)?,
        mod_revision: number(1)?,
        lease: Some(EtcdLease(number(2)?)).filter(|lease| lease.0 != 0),
    })
}
