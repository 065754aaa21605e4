//! A client of etcd that is connected before anything is measured.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use flatnet_plane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_plane::store::{Store, Txn, Write};
use flatnet_tests::netns::Namespace;

use crate::host::netns;

type Job = (Vec<Txn>, mpsc::Sender<Instant>);

/// A thread in etcd's namespace that writes what it is told.
pub struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Connects to etcd from its own namespace.
    pub fn new(etcd: &Namespace) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let namespace = netns(etcd);
        let thread = std::thread::spawn(move || {
            namespace.enter().unwrap();
            // One thread: every socket is made in the namespace that it is in.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let endpoints = vec!["http://127.0.0.1:2379".to_owned()];
                let store = EtcdStore::connect(EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap();
                for (txns, reply) in queue {
                    let began = Instant::now();
                    for txn in txns {
                        store.txn(txn).await.unwrap();
                    }
                    reply.send(began).unwrap();
                }
            });
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Writes one transaction after the other; returns when the first was sent.
    pub fn write(&self, txns: Vec<Txn>) -> Instant {
        let (reply, began) = mpsc::channel();
        self.jobs.as_ref().unwrap().send((txns, reply)).unwrap();
        began.recv().expect("etcd takes what the benchmark writes")
    }

    /// Makes one write; returns when it was sent.
    pub fn write_one(&self, write: Write) -> Instant {
        self.write(vec![Txn { when: Vec::new(), then: vec![write] }])
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A panic in there was already printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
