//! `controlplane backup`, `restore`, `migrate`, `etcd-roles`: the store as a whole.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;

use super::DataDir;
use super::report::{Exit, Failure, print, said, say};
use super::serve::STORE_FILE;
use crate::migrate;
use crate::server::keys::TOKENS;
use crate::store::embedded::{EmbeddedStore, OpenError};
use flatnet_plane::etcd_args::EtcdArgs;
use flatnet_plane::failure::chain;
use flatnet_plane::store::{KeyRange, Store, Txn, Write};

/// Write the whole store into one file, while the server runs or not
#[derive(Args, Clone, Debug)]
pub struct BackupArgs {
    /// Where to; not to be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    dir: DataDir,
}

/// Put a backup in the place of the store of a server that is stopped
#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// What `backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    dir: DataDir,
}

/// Move everything from an embedded store into an etcd
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// The data directory of a server that is stopped
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// etcd servers
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    to: Vec<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// Print the commands that make an etcd user who can be one node and nothing else
#[derive(Args, Clone, Debug)]
pub struct EtcdRolesArgs {
    /// The node's id
    #[arg(long, value_name = "ID")]
    node: flatnet_model::NodeId,
    /// Its subnet (twice for dual stack)
    #[arg(long, value_name = "CIDR", required = true, value_delimiter = ',')]
    subnet: Vec<ipnet::IpNet>,
    /// The network
    #[arg(long, value_name = "NAME", default_value = flatnet_model::NetworkName::DEFAULT)]
    network: flatnet_model::NetworkName,
    /// Where the network `default` lives
    #[arg(long, value_name = "PREFIX", default_value = flatnet_model::keys::FLANNEL_PREFIX)]
    etcd_prefix: String,
}

/// Opens the store of a stopped server.
fn open(dir: &Path) -> Result<EmbeddedStore, Failure> {
    let path = dir.join(STORE_FILE);
    if !path.exists() {
        return Err(Failure::new(Exit::NotFound, format!("there is no {}", path.display())));
    }
    EmbeddedStore::open(&path).map_err(|error| unusable(&error))
}

fn unusable(error: &OpenError) -> Failure {
    let failure = |exit| Failure::new(exit, chain(error));
    match error {
        OpenError::InUse { .. } => failure(Exit::Conflict).hint("stop the server first: it alone may have the file"),
        OpenError::Io { .. } => failure(Exit::InvalidConfig).hint("run as root, or name the --data-dir that is yours"),
        OpenError::Unusable { .. } => {
            failure(Exit::InvalidConfig).hint("a damaged file is replaced by a backup: controlplane restore FILE")
        }
    }
}

/// Backs up the store of a server, running or not.
pub async fn backup(args: BackupArgs) -> Result<(), Failure> {
    let file = std::path::absolute(&args.file).unwrap_or(args.file);
    if args.dir.is_served() {
        // The server's service may write nowhere else, and has a /tmp of its own. So it writes beside its store, and
        // the file is taken from there.
        let dir = std::path::absolute(&args.dir.data_dir).unwrap_or_else(|_| args.dir.data_dir.clone());
        let written = dir.join(format!("backup-{}.redb", std::process::id()));
        let message = flatnet_proto::controlplane::v1::BackupRequest { path: written.display().to_string() };
        let mut admin = args.dir.admin()?;
        // A file that is there already is refused before the server does anything.
        let target = new_file(&file)?;
        let taken = match admin.backup(message).await {
            Ok(_) => take(&written, target, &file),
            Err(status) => Err(said(status)),
        };
        if taken.is_err() {
            let _ = std::fs::remove_file(&file);
        }
        let _ = std::fs::remove_file(&written);
        taken?;
    } else {
        let written = open(&args.dir.data_dir)?.backup(file.clone()).await;
        written.map_err(|error| Failure::new(Exit::InvalidConfig, error.to_string()))?;
    }
    say(&format!("{}: the whole store", file.display()));
    Ok(())
}

/// Makes a file that must not be there yet.
fn new_file(path: &Path) -> Result<File, Failure> {
    std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(|error| {
        Failure::new(Exit::InvalidConfig, format!("cannot write {}", path.display()))
            .caused_by(error)
            .hint("name a file that is not there yet, in a directory that is")
    })
}

/// Copies the file `from` into `to`, which is at `path`, and waits until it is on the disk.
fn take(from: &Path, mut to: File, path: &Path) -> Result<(), Failure> {
    let copied = File::open(from).and_then(|mut from| std::io::copy(&mut from, &mut to)).and_then(|_| to.sync_all());
    copied
        .map_err(|error| Failure::new(Exit::InvalidConfig, format!("cannot write {}", path.display())).caused_by(error))
}

/// Gives the store to the owner of its directory: the service's user, while this is root.
fn give_to_owner_of(dir: &Path, store: &Path) -> std::io::Result<()> {
    let (owner, now) = (std::fs::metadata(dir)?, std::fs::metadata(store)?);
    if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) {
        return Ok(());
    }
    std::os::unix::fs::chown(store, Some(owner.uid()), Some(owner.gid()))
}

/// Restores the store of a server that is stopped.
pub async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    // Opening it tells whether it is one.
    drop(EmbeddedStore::open_existing(&args.file).map_err(|error| {
        Failure::new(Exit::InvalidConfig, chain(&error)).hint("name a file that `controlplane backup` wrote")
    })?);
    let path = args.dir.data_dir.join(STORE_FILE);
    let io = |error: std::io::Error| {
        Failure::new(Exit::InvalidConfig, format!("cannot write {}", path.display())).caused_by(error)
    };
    flatnet_plane::files::create_dir(&args.dir.data_dir, 0o700).map_err(io)?;
    // The store is held until the new one is in its place: a server that started meanwhile would go on with the old
    // one.
    let _before = match path.exists().then(|| EmbeddedStore::open(&path)) {
        Some(Err(error @ (OpenError::InUse { .. } | OpenError::Io { .. }))) => return Err(unusable(&error)),
        Some(Err(error @ OpenError::Unusable { .. })) => {
            say(&format!("{}; it is kept beside what is restored", chain(&error)));
            None
        }
        Some(Ok(store)) => Some(store),
        None => None,
    };
    let bytes = put_back(&std::fs::read(&args.file).map_err(io)?, &path.with_extension("redb.scratch")).await?;
    if path.exists() {
        let before = path.with_extension("redb.before");
        match std::fs::remove_file(&before) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        // There must be a store at any time: a server that found none would begin with an empty one.
        std::fs::hard_link(&path, &before).map_err(io)?;
    }
    flatnet_plane::files::replace(&path, &bytes, 0o600).map_err(io)?;
    give_to_owner_of(&args.dir.data_dir, &path).map_err(io)?;
    say(&format!(
        "{} restored; what was there is beside it as store.redb.before. Tokens are gone; nodes revoked or drained since that \
         copy are not any more: controlplane node ls",
        path.display()
    ));
    Ok(())
}

/// Prepares `backup` to be put back, in a file at `scratch`, and returns the result: its networks are made anew and its
/// join tokens removed.
async fn put_back(backup: &[u8], scratch: &Path) -> Result<Vec<u8>, Failure> {
    let failure = |error: String| Failure::new(Exit::InvalidConfig, error);
    let io = |error: std::io::Error| failure(format!("cannot write {}", scratch.display())).caused_by(error);
    flatnet_plane::files::replace(scratch, backup, 0o600).map_err(io)?;
    let marked = async {
        let store = EmbeddedStore::open_existing(scratch).map_err(|error| failure(error.to_string()))?;
        migrate::make_networks_anew(&store).await.map_err(|error| failure(error.to_string()))?;
        // Some of the backup's tokens may have been used since.
        let tokens = store.range(&KeyRange::prefix(TOKENS)).await.map_err(|error| failure(error.to_string()))?;
        for kv in tokens.kvs {
            let delete = Write::Delete(String::from_utf8_lossy(&kv.key).into_owned());
            let txn = Txn { when: Vec::new(), then: vec![delete] };
            store.txn(txn).await.map_err(|error| failure(error.to_string()))?;
        }
        drop(store);
        std::fs::read(scratch).map_err(io)
    };
    let marked = marked.await;
    std::fs::remove_file(scratch).map_err(io)?;
    marked
}

/// Migrates the store of a server that is stopped.
pub async fn migrate(args: MigrateArgs) -> Result<(), Failure> {
    let from = open(&args.from)?;
    let to = args.etcd.open(args.to.clone())?;
    let moved = migrate::copy(&from, &to).await.map_err(|error| {
        let exit = if matches!(error, migrate::MigrateError::NotEmpty(_)) { Exit::Conflict } else { Exit::Unavailable };
        Failure::new(exit, error.to_string()).hint("nothing is lost: the embedded store is as it was")
    })?;
    say(&format!(
        "{} keys moved; now: controlplane serve --data-dir {} --store etcd --endpoints {}",
        moved,
        args.from.display(),
        args.to.join(",")
    ));
    Ok(())
}

/// Prints the roles as commands for `etcdctl`.
pub async fn etcd_roles(args: EtcdRolesArgs) -> Result<(), Failure> {
    let text = migrate::etcd_roles(&args.network, &args.etcd_prefix, args.node, &args.subnet)
        .map_err(|error| Failure::new(Exit::InvalidConfig, error))?;
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_put_back_has_its_networks_made_anew_and_the_one_before_beside_it() {
        const CONFIG: &str = "/coreos.com/network/config";
        let dir = std::env::temp_dir().join(format!("flatnet-restore-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let data_dir = dir.join("data");
        flatnet_plane::files::create_dir(&data_dir, 0o700).unwrap();
        let (path, file) = (data_dir.join(STORE_FILE), dir.join("backup"));
        let put = |key: &str, value: &str| Txn {
            when: Vec::new(),
            then: vec![Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }],
        };
        let store = EmbeddedStore::open(&path).unwrap();
        store.txn(put(CONFIG, r#"{"Network":"10.1.0.0/16"}"#)).await.unwrap();
        let before = store.range(&KeyRange::key(CONFIG)).await.unwrap().kvs.remove(0);
        store.backup(file.clone()).await.unwrap();
        store.txn(put("/later", "")).await.unwrap();
        drop(store);

        // A service's directory belongs to its user. Only root can give it away; otherwise this user keeps it, and so
        // the file.
        let _ = std::os::unix::fs::chown(&data_dir, Some(65_534), Some(65_534));
        restore(RestoreArgs { file, dir: DataDir { data_dir: data_dir.clone() } }).await.unwrap();
        let owner = |path: &Path| std::fs::metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!(owner(&path), owner(&data_dir));
        let store = open(&data_dir).unwrap();
        let now = store.range(&KeyRange::key(CONFIG)).await.unwrap().kvs.remove(0);
        assert_eq!(now.value, before.value);
        assert!(now.create_revision > before.create_revision, "{now:?}");
        assert!(store.range(&KeyRange::key("/later")).await.unwrap().kvs.is_empty());
        let mut files: Vec<_> = std::fs::read_dir(&data_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, [STORE_FILE, "store.redb.before"]);
        drop(store);
        let beside = EmbeddedStore::open_existing(&path.with_extension("redb.before")).unwrap();
        assert_eq!(beside.range(&KeyRange::key("/later")).await.unwrap().kvs.len(), 1);
        drop(beside);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_damaged_store_is_replaced_and_kept_and_half_a_backup_is_none() {
        let dir = std::env::temp_dir().join(format!("flatnet-damaged-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let data_dir = dir.join("data");
        flatnet_plane::files::create_dir(&data_dir, 0o700).unwrap();
        let (path, file) = (data_dir.join(STORE_FILE), dir.join("backup"));
        let store = EmbeddedStore::open(&path).unwrap();
        store.txn(Txn { when: Vec::new(), then: vec![put("/key")] }).await.unwrap();
        store.txn(Txn { when: Vec::new(), then: vec![put(&format!("{TOKENS}used"))] }).await.unwrap();
        store.backup(file.clone()).await.unwrap();
        let args = |file: &Path| RestoreArgs { file: file.to_owned(), dir: DataDir { data_dir: data_dir.clone() } };
        // A server runs.
        assert_eq!(restore(args(&file)).await.unwrap_err().exit(), Exit::Conflict);
        drop(store);

        std::fs::write(&path, b"not a store").unwrap();
        restore(args(&file)).await.unwrap();
        let kvs = open(&data_dir).unwrap().range(&KeyRange::prefix("/")).await.unwrap().kvs;
        assert_eq!(kvs.iter().map(|kv| kv.key.as_slice()).collect::<Vec<_>>(), [b"/key"]);
        assert_eq!(std::fs::read(path.with_extension("redb.before")).unwrap(), b"not a store");

        // The disk was full, or the machine stopped, and left a file of the database's with nothing in it.
        let half = dir.join("half");
        drop(EmbeddedStore::open(&half).unwrap());
        assert_eq!(restore(args(&half)).await.unwrap_err().exit(), Exit::InvalidConfig);
        assert_eq!(open(&data_dir).unwrap().range(&KeyRange::prefix("/")).await.unwrap().kvs.len(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn put(key: &str) -> Write {
        Write::Put { key: key.to_owned(), value: Vec::new(), lease: None }
    }
}
