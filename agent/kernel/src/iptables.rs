//! Our rule at the head of other people's iptables chains: set by `iptables-restore`, atomically, and read by
//! `iptables -S` only when the kernel's table changed.

mod events;
mod filter;
pub(crate) mod fuzzing;
mod legacy;
mod listing;

use std::collections::BTreeMap;

use flatnet_core::object::{Dump, Object};
use flatnet_core::op::{Action, ObjectKind, Op, OpOutcome};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::dependency::Failures;
use crate::nft::{NftRequests, failed, refuse, with_causes};
use crate::provider::{Provider, nothing};
use crate::{Facts, KernelError, Questions, Scope, Wake};
use filter::{Cache, Wanted, Which};

/// The provider.
pub(crate) struct Iptables {
    requests: NftRequests,
    cache: tokio::sync::Mutex<Cache>,
}

impl Iptables {
    pub(crate) fn new(requests: NftRequests) -> Self {
        Self { requests, cache: tokio::sync::Mutex::default() }
    }

    async fn with_listings<T>(&self, read: impl Fn(&Cache) -> T) -> Result<T, KernelError> {
        let mut cache = self.cache.lock().await;
        let looks = self.requests.blocking(filter::look).await.map_err(failed("iptables"))?;
        cache.refresh(&looks).await.map_err(failed("iptables"))?;
        Ok(read(&cache))
    }
}

impl Provider for Iptables {
    fn carries(&self, object: &Object) -> bool {
        object.kind() == ObjectKind::Iptables
    }

    /// Where iptables' own program is missing, the chains that drop are a guess on the safe side; the operation that
    /// needs the program fails and names it.
    fn facts<'a>(&'a self, asked: &'a Questions, facts: &'a mut Facts) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if asked.host.is_some() {
                facts.host.dropping_chains = self.with_listings(Cache::dropping).await?;
            }
            Ok(())
        })
    }

    fn dump<'a>(&'a self, scope: &'a Scope, dump: &'a mut Dump) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if scope.has_kind(ObjectKind::Iptables) {
                dump.state.iptables = self.with_listings(Cache::rules).await?;
            }
            Ok(())
        })
    }

    fn apply<'a>(&'a self, ops: &'a [Op], _: &'a [Op], failures: &'a mut Failures) -> BoxFuture<'a, Vec<OpOutcome>> {
        Box::pin(async move {
            let of_tried = carry_out(&failures.tried(ops)).await;
            failures.settle(ops, of_tried)
        })
    }

    fn follow(&self, _: &[Op], _: &[OpOutcome]) {}

    fn settle(&self) -> BoxFuture<'_, ()> {
        nothing()
    }

    fn events(&self) -> Result<Option<BoxStream<'static, Wake>>, KernelError> {
        Ok(Some(events::events().boxed()))
    }
}

/// Carries out operations, one transaction for each of iptables' tables.
async fn carry_out(ops: &[&Op]) -> Vec<OpOutcome> {
    let mut tables: BTreeMap<Which, Vec<(usize, Wanted)>> = BTreeMap::new();
    for (index, op) in ops.iter().enumerate() {
        if let Object::Iptables(key, rule) = &op.object {
            let rule = (op.action != Action::Delete).then(|| rule.clone());
            let wanted = Wanted { chain: key.chain, comment: key.comment.clone(), rule };
            tables.entry((key.variant, key.family)).or_default().push((index, wanted));
        }
    }
    let mut outcomes = vec![OpOutcome::Skipped; ops.len()];
    for (which, changes) in tables {
        let all: Vec<Wanted> = changes.iter().map(|(_, wanted)| wanted.clone()).collect();
        if filter::change(which, &all).await.is_ok() {
            for (index, _) in changes {
                outcomes[index] = OpOutcome::Done;
            }
            continue;
        }
        // Trying them one by one shows which one is refused.
        for (index, wanted) in changes {
            outcomes[index] = match filter::change(which, &[wanted]).await {
                Ok(()) => OpOutcome::Done,
                Err(error) => refuse(ops[index], None, &with_causes(&error)),
            };
        }
    }
    outcomes
}
