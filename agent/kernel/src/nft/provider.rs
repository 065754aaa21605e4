//! The table as a provider.

use flatnet_core::object::{Dump, Object};
use flatnet_core::op::{ObjectKind, Op, OpOutcome};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::{Nft, events, failed};
use crate::dependency::{self, Failures};
use crate::provider::Provider;
use crate::{Facts, KernelError, Questions, Scope, Wake};

impl Provider for Nft {
    fn carries(&self, object: &Object) -> bool {
        matches!(object, Object::Ruleset { .. } | Object::PeerSource(_))
    }

    fn facts<'a>(&'a self, asked: &'a Questions, facts: &'a mut Facts) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if asked.drops {
                facts.drops = self.drops().await?;
            }
            if asked.sightings {
                facts.sightings = self.sightings().await?;
            }
            Ok(())
        })
    }

    fn dump<'a>(&'a self, scope: &'a Scope, dump: &'a mut Dump) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if scope.has_kind(ObjectKind::Ruleset) || scope.has_kind(ObjectKind::PeerSource) {
                self.dump_table(scope, &mut dump.state).await?;
            }
            Ok(())
        })
    }

    fn apply<'a>(&'a self, ops: &'a [Op], _: &'a [Op], failures: &'a mut Failures) -> BoxFuture<'a, Vec<OpOutcome>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(ops.len());
            for run in dependency::runs(ops) {
                let of_tried = self.carry_out(&failures.tried(run)).await;
                outcomes.extend(failures.settle(run, of_tried));
            }
            outcomes
        })
    }

    fn follow(&self, _: &[Op], _: &[OpOutcome]) {}

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.hold())
    }

    /// This includes our own changes, and many changes at once wake once.
    fn events(&self) -> Result<Option<BoxStream<'static, Wake>>, KernelError> {
        Ok(Some(events::events().map_err(failed("nftables' notifications"))?.boxed()))
    }
}
