//! The held copy: the guard a second time, in a table that nobody else can take away.
//!
//! `nft flush ruleset` deletes every table except those that a process owns (`NFT_TABLE_F_OWNER`, Linux 5.12). A table
//! of that kind goes with its owner's socket, so it cannot be the only one. The other table guards while no agent runs,
//! and this one while the other is away. A packet passes both.
//!
//! It is made anew in one transaction whenever the table is swapped, and follows every change of an element, so that it
//! never drops what the table lets in. Where it cannot be made or brought up to date, there is none: an outdated copy
//! would be worse than a moment without one. Nobody else can change it, so it holds exactly what was put in.
//!
//! The firewall owns it, and calls it with its socket locked. It lives as long as that socket. Dropping it changes
//! nothing.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use flatnet_core::object::{PeerSource, Ruleset, SetName};

use super::elements::{self, Change};
use super::netfilter::Netfilter;
use super::replica::{self, Parts};
use super::table::{self, Digest, TABLE_FLAGS, TABLE_NAME};
use super::wire::{Family, NLM_F_ACK, NLM_F_CREATE, Request, Writer};

/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// `NFTA_TABLE_USERDATA`, in which nft keeps comments (libnftnl: type 0, length, text with its NUL).
const TABLE_USERDATA: u16 = 6;
const COMMENT: &str = "flatnet's agent guards by this while inet flatnet is flushed";
/// The time for which a table that could not be copied is left alone, unless it is swapped.
const COPY_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The copy, or the reason why there is none.
#[derive(Debug, Default)]
pub(super) struct Held {
    copy: Option<Copied>,
    /// True if the last dump found that the copy lacks something.
    behind: bool,
    /// The table of which making a copy failed, and the time of that.
    failed: Option<(Digest, Instant)>,
    /// True if the kernel has no owners of tables.
    unsupported: bool,
    /// The error that was last logged.
    said: Option<String>,
}

#[derive(Debug)]
struct Copied {
    of: Digest,
    elements: BTreeSet<PeerSource>,
}

/// The reason why there is no new copy.
enum CopyError {
    /// There is no table now, so the held copy is what guards.
    NoTable,
    /// The kernel has no owners of tables.
    Unsupported,
    /// Anything else.
    Failed(io::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Held {
    /// Compares the copy with what a dump found: a table that looks like `digest`, with at least `elements`.
    pub(super) fn compare(&mut self, digest: Digest, elements: &BTreeSet<PeerSource>) {
        let is_whole = |copy: &Copied| copy.of == digest && elements.is_subset(&copy.elements);
        self.behind = !self.copy.as_ref().is_some_and(is_whole);
    }

    /// Leaves the copy as it is, because a dump found no table that it could be compared with.
    pub(super) fn keep(&mut self) {
        self.behind = false;
    }

    /// Returns true if there is a copy, of whichever table.
    pub(super) fn is_there(&self) -> bool {
        self.copy.is_some()
    }

    /// Returns true if the table that looks like `digest` is to be copied.
    pub(super) fn is_due(&self, digest: Digest) -> bool {
        let failed = self.failed.is_some_and(|(of, when)| of == digest && when.elapsed() < COPY_RETRY_AFTER);
        self.behind && !failed && !self.unsupported
    }

    /// Copies the table that looks like `of`. `elements` are those of its sets; with `None`, those that it has now.
    pub(super) fn copy(&mut self, netfilter: &mut Netfilter, of: Digest, elements: Option<Vec<PeerSource>>) {
        if self.unsupported {
            return;
        }
        match make(netfilter, of, elements) {
            Ok(elements) => {
                self.copy = Some(Copied { of, elements });
                (self.behind, self.failed) = (false, None);
                if self.said.take().is_some() {
                    tracing::info!("the guard is held a second time again");
                }
            }
            Err(CopyError::NoTable) => {}
            Err(CopyError::Unsupported) => {
                self.unsupported = true;
                tracing::info!(
                    "this kernel knows no owners of nftables tables (Linux 5.12 does): `nft flush ruleset` opens the tunnels for moments"
                );
            }
            Err(CopyError::Failed(error)) => {
                self.failed = Some((of, Instant::now()));
                self.give_up(netfilter, &error);
            }
        }
    }

    /// Adds the elements that `changes` create, so that their packets are let in.
    pub(super) fn create(&mut self, netfilter: &mut Netfilter, changes: &[Change]) {
        self.change(netfilter, changes, true);
    }

    /// Removes the elements that `changes` delete, so that their packets are shut out.
    pub(super) fn remove(&mut self, netfilter: &mut Netfilter, changes: &[Change]) {
        self.change(netfilter, changes, false);
    }

    fn change(&mut self, netfilter: &mut Netfilter, changes: &[Change], create: bool) {
        let Some(copy) = &mut self.copy else { return };
        let wanted = |change: &&Change| change.create == create && copy.elements.contains(&change.source) != create;
        let changes: Vec<Change> = changes.iter().filter(wanted).copied().collect();
        if changes.is_empty() {
            return;
        }
        let refused = match elements::apply(netfilter, Ruleset::HELD, &changes) {
            Ok(results) => results.into_iter().find(|errno| *errno != 0).map(io::Error::from_raw_os_error),
            Err(error) => Some(error),
        };
        match refused {
            // The next dump makes it anew.
            Some(error) => self.give_up(netfilter, &error),
            None if create => copy.elements.extend(changes.iter().map(|change| change.source)),
            None => copy.elements.retain(|source| !changes.iter().any(|change| change.source == *source)),
        }
    }

    /// Gives the copy up, which is better than keeping one that is not up to date.
    fn give_up(&mut self, netfilter: &mut Netfilter, error: &io::Error) {
        let deleted = self.delete(netfilter);
        let error = error.to_string();
        if self.said.as_ref() != Some(&error) {
            tracing::warn!(
                error,
                deleted = deleted.is_ok(),
                "the guard cannot be held a second time: `nft flush ruleset` opens the tunnels for moments"
            );
            self.said = Some(error);
        }
    }

    /// Deletes the copy. If there is none, that is success.
    pub(super) fn delete(&mut self, netfilter: &mut Netfilter) -> io::Result<()> {
        if self.copy.take().is_none() && self.failed.is_none() {
            return Ok(());
        }
        table::delete(netfilter, Family::Inet, Ruleset::HELD)
    }
}

/// Replaces the held copy by one of the table that looks like `of`. Returns the elements of its sets.
fn make(
    netfilter: &mut Netfilter,
    of: Digest,
    elements: Option<Vec<PeerSource>>,
) -> Result<BTreeSet<PeerSource>, CopyError> {
    let parts = replica::read(netfilter, Ruleset::TABLE);
    let elements = match (&parts, elements) {
        (_, Some(elements)) => Ok(elements),
        (Ok(parts), None) => read_elements(netfilter, parts),
        (Err(_), None) => Ok(Vec::new()),
    };
    match table::digest(netfilter, Family::Inet, Ruleset::TABLE)? {
        None => return Err(CopyError::NoTable),
        Some(now) if now != of => return Err(io::Error::other("the table changed while it was read").into()),
        Some(_) => {}
    }
    let (parts, elements) = (parts?, elements?.into_iter().collect::<BTreeSet<_>>());
    let changes: Vec<Change> = elements.iter().map(|source| Change { create: true, source: *source }).collect();
    write(netfilter, &parts, &changes)?;
    Ok(elements)
}

fn read_elements(netfilter: &mut Netfilter, parts: &Parts) -> io::Result<Vec<PeerSource>> {
    let mut elements = Vec::new();
    for set in parts.named_sets().filter_map(SetName::parse) {
        elements.extend(elements::read(netfilter, set)?.sources);
    }
    Ok(elements)
}

/// Writes the copy in one transaction. That may be too large for the socket (with more than some 5,000 peers, in a user
/// namespace only). Then the sets, which judge nothing, are written first, and the rules that ask them last.
fn write(netfilter: &mut Netfilter, parts: &Parts, changes: &[Change]) -> Result<(), CopyError> {
    let (mut sets, mut elements, mut rules) = (Writer::default(), Writer::default(), Writer::default());
    let is_there = |netfilter: &mut Netfilter| {
        netfilter.get(Request::GetTable, Family::Inet, |writer| writer.string(TABLE_NAME, Ruleset::HELD), |_| ())
    };
    if is_there(netfilter)?.is_some() {
        let message = sets.open(Request::DelTable, 0, netfilter.next_sequence(), Family::Inet);
        sets.string(TABLE_NAME, Ruleset::HELD);
        sets.close(&message);
    }
    let table = netfilter.next_sequence();
    write_table(&mut sets, table);
    parts.write_sets(&mut sets, netfilter, Ruleset::HELD);
    elements::write_packed(&mut elements, netfilter, Ruleset::HELD, changes);
    parts.write_rules(&mut rules, netfilter, Ruleset::HELD, NLM_F_ACK);
    if sets.bytes.len() + elements.bytes.len() + rules.bytes.len() < netfilter.send_limit {
        return transaction(netfilter, &[sets, elements, rules], table);
    }
    transaction(netfilter, &[sets], table)?;
    let results = elements::apply(netfilter, Ruleset::HELD, changes)?;
    if let Some(errno) = results.into_iter().find(|errno| *errno != 0) {
        return Err(io::Error::from_raw_os_error(errno).into());
    }
    transaction(netfilter, &[rules], table)
}

fn write_table(writer: &mut Writer, sequence: u32) {
    let message = writer.open(Request::NewTable, NLM_F_CREATE | NLM_F_ACK, sequence, Family::Inet);
    writer.string(TABLE_NAME, Ruleset::HELD);
    writer.attribute(TABLE_FLAGS, &OWNER.to_be_bytes());
    let length = u8::try_from(COMMENT.len() + 1).unwrap_or(u8::MAX);
    writer.attribute(TABLE_USERDATA, &[&[0, length], COMMENT.as_bytes(), &[0]].concat());
    writer.close(&message);
}

/// Sends one transaction. `table` is the sequence number of the message that makes the table, by which its refusal is
/// recognised.
fn transaction(netfilter: &mut Netfilter, parts: &[Writer], table: u32) -> Result<(), CopyError> {
    let mut writer = Writer::default();
    writer.batch_begin(netfilter.next_sequence());
    for part in parts {
        writer.bytes.extend_from_slice(&part.bytes);
    }
    writer.batch_end(netfilter.next_sequence());
    let errors = netfilter.batch(&writer.bytes)?.errors;
    // Before owners came (5.12), an unknown flag was EINVAL, later EOPNOTSUPP.
    let unknown =
        |(sequence, errno): &(u32, i32)| *sequence == table && [libc::EINVAL, libc::EOPNOTSUPP].contains(errno);
    match errors.first() {
        None => Ok(()),
        Some(_) if errors.iter().any(unknown) => Err(CopyError::Unsupported),
        Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno).into()),
    }
}
