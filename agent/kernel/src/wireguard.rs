//! WireGuard devices: their keys and peers, whoever encrypts.
//!
//! | who encrypts | the device | its settings |
//! |---|---|---|
//! | the kernel | of kind `wireguard` | over generic netlink |
//! | this process (`userspace`) | a TUN device of the same name | over `/run/wireguard/<device>.sock`, like `wg` |
//!
//! Only [`Keyring`] knows private keys. Objects, plans and logs have the public half.

mod control;
mod devices;
mod keyring;
mod userspace;

use std::sync::Arc;

use flatnet_core::object::{Dump, LinkKind, Object};
use flatnet_core::op::{Op, OpOutcome};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub use keyring::{Keyring, PrivateKey};

use crate::dependency::Failures;
use crate::provider::{Provider, no_answer, nothing};
use crate::rtnetlink::{Requests, outcome};
use crate::{Facts, KernelError, Questions, Scope, Wake};
use devices::Devices;

/// The provider.
pub(crate) struct Wireguard {
    requests: Requests,
    devices: Arc<Devices>,
}

impl Wireguard {
    pub(crate) fn new(requests: Requests, keys: Keyring) -> Self {
        Self { requests, devices: Arc::new(Devices::new(keys)) }
    }
}

impl Provider for Wireguard {
    fn carries(&self, object: &Object) -> bool {
        match object {
            Object::Link(_, link) => matches!(link.kind, LinkKind::Wireguard(_)),
            object => matches!(object, Object::WireguardPeer(..)),
        }
    }

    fn facts<'a>(&'a self, asked: &'a Questions, facts: &'a mut Facts) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if asked.host.is_some() {
                let devices = Arc::clone(&self.devices);
                let datapath = self.requests.blocking(move |channel| devices.datapath(channel)).await;
                let failed = |source| KernelError { what: "features", source };
                facts.host.features.wireguard = datapath.map_err(failed)?;
            }
            Ok(())
        })
    }

    fn dump<'a>(&'a self, scope: &'a Scope, dump: &'a mut Dump) -> BoxFuture<'a, Result<(), KernelError>> {
        if !scope.ours && dump.state.links.is_empty() {
            return no_answer();
        }
        let (all, devices) = (scope.ours, Arc::clone(&self.devices));
        Box::pin(self.requests.look(dump, move |channel, dump| {
            devices.dump(channel, &mut dump.state, all);
            Ok(())
        }))
    }

    fn apply<'a>(&'a self, ops: &'a [Op], all: &'a [Op], failures: &'a mut Failures) -> BoxFuture<'a, Vec<OpOutcome>> {
        let (all, devices) = (all.to_vec(), Arc::clone(&self.devices));
        Box::pin(self.requests.carry(ops, failures, move |channel, run| match run {
            [Op { object: Object::WireguardPeer(..), .. }, ..] => {
                let answers = devices.change_peers(run, &all);
                run.iter().zip(answers).map(|(op, answer)| outcome(op, answer)).collect()
            }
            run => run.iter().map(|op| outcome(op, devices.carry_out(channel, op))).collect(),
        }))
    }

    fn follow(&self, _: &[Op], _: &[OpOutcome]) {}

    fn settle(&self) -> BoxFuture<'_, ()> {
        nothing()
    }

    fn events(&self) -> Result<Option<BoxStream<'static, Wake>>, KernelError> {
        Ok(Some(devices::events(&self.devices).boxed()))
    }
}
