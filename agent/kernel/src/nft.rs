//! Our nftables table and its set elements.
//!
//! | what | how |
//! |---|---|
//! | the table | swapped whole in one transaction by `nft -f -` |
//! | an element | over netlink, in microseconds: it counts into the time from lease to first packet |
//! | is the table as we loaded it? | a digest of what the kernel has, compared with the one right after the swap |
//! | the guard under `nft flush ruleset` | a copy of what filters, in a table that only this process can delete |
//!
//! Sockets belong to the network namespace in which the provider was opened; programs run in the process's namespace.
//! Dropping a call's future kills its program and changes nothing else; the next dump tells what was done.

mod drops;
mod elements;
mod events;
pub(crate) mod fuzzing;
mod held;
mod memory;
pub(crate) mod netfilter;
mod provider;
mod replica;
mod sightings;
mod swap;
pub(crate) mod table;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatnet_core::claims::Sighting;
use flatnet_core::drops::DropCount;
use flatnet_core::object::{Altered, KernelState, ObjectKey, PeerSource, Ruleset};
use flatnet_core::op::{Action, Object, Op, OpError, OpOutcome};

use crate::program::ProgramError;
use crate::{KernelError, Scope};
use elements::Change;
use held::Held;
use memory::Memory;
use netfilter::Netfilter;
use swap::Loaded;
use table::Digest;
use wire::Family;

/// The number of times a swap is tried, if somebody else changes a ruleset at the same moment. After that the digest is
/// taken as it is: that somebody changed *our* table in those milliseconds is far less likely than that they are busy
/// with their own.
const SWAP_TRIES: usize = 3;

/// The words with which nft reports that it could read a text but the kernel refused it.
const NOT_PROCESSED: &str = "Could not process rule";

/// The refusal of a ruleset by nft or the kernel.
#[derive(Debug, thiserror::Error)]
#[error("nft {version} cannot load the firewall that guards the tunnels")]
pub struct RulesetRefused {
    /// The output of `nft --version`.
    pub version: String,
    /// True if nft could read the ruleset and the kernel refused it.
    pub by_kernel: bool,
    /// The reason, in nft's words.
    source: ProgramError,
}

/// The one socket for requests to nf_tables, which providers share.
#[derive(Clone)]
pub(crate) struct NftRequests(Arc<Mutex<Netfilter>>);

impl NftRequests {
    /// Runs `work` with the socket. Its calls block, though rarely for long: a transaction on a large set takes
    /// milliseconds.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Netfilter) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let netfilter = Arc::clone(&self.0);
        let work = move || work(&mut lock(&netfilter));
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }
}

/// The provider of our table.
pub(crate) struct Nft {
    requests: NftRequests,
    /// Locked after the socket, or alone.
    held: Arc<Mutex<Held>>,
    memory: Mutex<Memory>,
}

impl Nft {
    /// Opens the socket in the calling thread's network namespace. The file `memory` (in the run directory) remembers
    /// over a restart which ruleset is loaded.
    pub(crate) fn open(memory: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            requests: NftRequests(Arc::new(Mutex::new(Netfilter::open()?))),
            held: Arc::default(),
            memory: Mutex::new(Memory::load(memory)),
        })
    }

    /// Returns the socket.
    pub(crate) fn requests(&self) -> NftRequests {
        self.requests.clone()
    }

    /// Adds our table and the elements of its sets to `into`, as far as `scope` looks at them. A table that is not as
    /// we made it is marked as altered, and so is one of which only the held copy is left.
    async fn dump_table(&self, scope: &Scope, into: &mut KernelState) -> Result<(), KernelError> {
        let sets = scope.sets_read();
        let read = self.requests.blocking(move |netfilter| {
            let mut contents = Vec::new();
            let digest = table::digest(netfilter, Family::Inet, Ruleset::TABLE)?;
            if digest.is_some() {
                for set in sets {
                    contents.push(elements::read(netfilter, set)?);
                }
            }
            Ok((digest, contents))
        });
        let (digest, contents) = read.await.map_err(failed("nftables"))?;
        let odd = contents.iter().any(|set| set.odd > 0);
        let known = digest.and_then(|digest| lock(&self.memory).recall(digest).filter(|_| !odd).cloned());
        into.peer_sources.extend(contents.into_iter().flat_map(|set| set.sources));
        let mut held = lock(&self.held);
        match (digest, &known) {
            (Some(digest), Some(_)) if scope.ours => held.compare(digest, &into.peer_sources),
            (Some(_), Some(_)) => {}
            // The copy of the guard that is away, or another, stays as it is.
            _ => held.keep(),
        }
        if known.is_none() && (digest.is_some() || held.is_there()) {
            into.alter(ObjectKey::Ruleset, Altered::InPlace);
        }
        into.ruleset = known;
        Ok(())
    }

    /// Returns the packets that our rules have dropped. This includes those of the held copy, which drops what the
    /// table would have, had nobody flushed it.
    async fn drops(&self) -> Result<Vec<DropCount>, KernelError> {
        self.of_both_tables(drops::read).await.map_err(failed("nftables' counters"))
    }

    /// Returns the sources whose packets our rules dropped lately, as far as the kernel remembers. This includes the
    /// held copy's.
    async fn sightings(&self) -> Result<Vec<Sighting>, KernelError> {
        self.of_both_tables(sightings::read).await.map_err(failed("nftables' sets of dropped packets' sources"))
    }

    /// Returns what `read` finds in our table and in the held copy, as far as they are there.
    async fn of_both_tables<T: Send + 'static>(
        &self,
        read: impl Fn(&mut Netfilter, &'static str) -> io::Result<Vec<T>> + Send + 'static,
    ) -> io::Result<Vec<T>> {
        let read = move |netfilter: &mut Netfilter| {
            let mut all = Vec::new();
            for table in [Ruleset::TABLE, Ruleset::HELD] {
                match read(netfilter, table) {
                    Ok(found) => all.extend(found),
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(all)
        };
        self.requests.blocking(read).await
    }

    /// Carries out a run of operations: elements, which are one transaction, or one swap.
    async fn carry_out(&self, run: &[&Op]) -> Vec<OpOutcome> {
        match run {
            [Op { object: Object::PeerSource(_), .. }, ..] => self.apply_elements(run).await,
            run => {
                let mut outcomes = Vec::with_capacity(run.len());
                for op in run {
                    outcomes.push(self.apply_table(op).await);
                }
                outcomes
            }
        }
    }

    async fn apply_table(&self, op: &Op) -> OpOutcome {
        let Object::Ruleset { ruleset, elements } = &op.object else {
            return refuse(op, None, "not an object of the firewall");
        };
        match op.action {
            Action::Delete => self.delete_table(op).await,
            Action::Create | Action::Change | Action::Replace | Action::Adopt => self.swap(op, ruleset, elements).await,
        }
    }

    async fn delete_table(&self, op: &Op) -> OpOutcome {
        lock(&self.memory).forget();
        let held = Arc::clone(&self.held);
        let delete = move |netfilter: &mut Netfilter| {
            table::delete(netfilter, Family::Inet, Ruleset::TABLE)?;
            lock(&held).delete(netfilter)
        };
        match self.requests.blocking(delete).await {
            Ok(()) => OpOutcome::Done,
            Err(error) => refuse_with(op, &error),
        }
    }

    /// Swaps the table. A swap that is refused changes nothing: what was loaded before is still known by its digest.
    async fn swap(&self, op: &Op, ruleset: &Ruleset, elements: &[PeerSource]) -> OpOutcome {
        let mut look = Ok((0, None));
        let mut loaded = Loaded::Whole;
        for _ in 0..SWAP_TRIES {
            let before = self.requests.blocking(table::generation).await;
            loaded = match swap::swap(ruleset, elements).await {
                Ok(loaded) => loaded,
                Err(error) => return refuse(op, None, &with_causes(&error)),
            };
            look = self
                .requests
                .blocking(|netfilter| {
                    let digest = table::digest(netfilter, Family::Inet, Ruleset::TABLE)?;
                    Ok((table::generation(netfilter)?, digest))
                })
                .await;
            // There was exactly one transaction, ours, so what was digested is what was loaded.
            if matches!((&before, &look), (Ok(before), Ok((after, _))) if before.wrapping_add(1) == *after) {
                break;
            }
        }
        match look {
            Ok((_, Some(digest))) => {
                lock(&self.memory).remember(digest, ruleset.clone());
                self.copy(digest, Some(elements)).await;
                match loaded {
                    Loaded::Whole => OpOutcome::Done,
                    Loaded::WithoutElements => self.fill(op, elements).await,
                }
            }
            Ok((_, None)) => refuse(op, None, "the table was loaded and is gone again: somebody else deletes it"),
            Err(error) => {
                // The held copy may have been made for other peers, and drop packets of new ones.
                self.unhold().await;
                refuse_with(op, &error)
            }
        }
    }

    /// Brings the held copy of the guard up to date with the table that was loaded, if the last dump found
    /// the copy outdated. This costs nothing where nothing is to be done.
    async fn hold(&self) {
        let loaded = lock(&self.memory).digest();
        if let Some(digest) = loaded.filter(|digest| lock(&self.held).is_due(*digest)) {
            self.copy(digest, None).await;
        }
    }

    /// Holds a copy of the table that looks like `digest`. `elements` are those of its sets, if they are known. The
    /// copy itself reports failures.
    async fn copy(&self, digest: Digest, elements: Option<&[PeerSource]>) {
        let (held, elements) = (Arc::clone(&self.held), elements.map(<[PeerSource]>::to_vec));
        let copy = move |netfilter: &mut Netfilter| {
            lock(&held).copy(netfilter, digest, elements);
            Ok(())
        };
        // This fails only if the runtime does.
        let _ = self.requests.blocking(copy).await;
    }

    async fn unhold(&self) {
        let held = Arc::clone(&self.held);
        if let Err(error) = self.requests.blocking(move |netfilter| lock(&held).delete(netfilter)).await {
            tracing::error!(error = with_causes(&error), "cannot delete the held copy of the guard");
        }
    }

    /// Adds the elements that did not go in with the table. Those that fail are missed by the next dump, and made one
    /// by one.
    async fn fill(&self, op: &Op, elements: &[PeerSource]) -> OpOutcome {
        let elements: BTreeSet<PeerSource> = elements.iter().copied().collect();
        let changes: Vec<Change> = elements.into_iter().map(|source| Change { create: true, source }).collect();
        match self.requests.blocking(move |netfilter| elements::apply(netfilter, Ruleset::TABLE, &changes)).await {
            Ok(results) => of_errno(op, results.into_iter().find(|errno| *errno != 0).unwrap_or_default()),
            Err(error) => refuse_with(op, &error),
        }
    }

    async fn apply_elements(&self, ops: &[&Op]) -> Vec<OpOutcome> {
        let source = |op: &&Op| match &op.object {
            Object::PeerSource(source) => Some(Change { create: op.action != Action::Delete, source: *source }),
            _ => None,
        };
        let changes: Vec<Change> = ops.iter().filter_map(source).collect();
        let held = Arc::clone(&self.held);
        let apply = move |netfilter: &mut Netfilter| {
            let mut held = lock(&held);
            // Both tables judge a packet, so the order matters: what the copy let in last or shut out first would be
            // lost meanwhile.
            held.create(netfilter, &changes);
            let results = elements::apply(netfilter, Ruleset::TABLE, &changes)?;
            held.remove(netfilter, &changes);
            Ok(results)
        };
        match self.requests.blocking(apply).await {
            Ok(results) => std::iter::zip(ops, results).map(|(op, errno)| of_errno(op, errno)).collect(),
            Err(error) => ops.iter().map(|op| refuse_with(op, &error)).collect(),
        }
    }
}

/// Asks nft and the kernel whether they accept such a ruleset, and changes nothing.
pub(crate) async fn check(ruleset: &Ruleset, elements: &[PeerSource]) -> Result<(), RulesetRefused> {
    let Err(error) = swap::check(ruleset, elements).await else { return Ok(()) };
    let by_kernel = matches!(&error, ProgramError::Refused { words, .. } if words.contains(NOT_PROCESSED));
    let version = swap::version().await.unwrap_or_else(|| "of unknown version".to_owned());
    Err(RulesetRefused { version, by_kernel, source: error })
}

/// Locks. A lock whose holder panicked is still good, since every dump compares what it guards with the kernel.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the error of a reading that failed.
pub(crate) fn failed(what: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError { what, source }
}

fn of_errno(op: &Op, errno: i32) -> OpOutcome {
    if errno == 0 { OpOutcome::Done } else { refuse_with(op, &io::Error::from_raw_os_error(errno)) }
}

fn refuse_with(op: &Op, error: &io::Error) -> OpOutcome {
    refuse(op, error.raw_os_error(), &with_causes(error))
}

/// Returns the outcome of an operation that was refused.
pub(crate) fn refuse(op: &Op, errno: Option<i32>, reason: &str) -> OpOutcome {
    let (action, object) = (op.action, op.object.to_string());
    OpOutcome::Failed(OpError { action, object, errno, reason: reason.to_owned() })
}

/// Returns an error with its causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
