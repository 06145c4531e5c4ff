//! Whose turn it is: what keeps nothing brings a pipeline only what is published while it reads. So it reads before those
//! begin that publish to it, and until they have ended.

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pipeline::topology::Topology;

/// What the other pipelines of a run see of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    /// Cancelled once what is published reaches it.
    pub(super) reads: CancellationToken,
    /// Cancelled once it has ended.
    pub(super) ended: CancellationToken,
}

impl Life {
    /// Ends it, when dropped. Who failed before it has read lets nobody begin: the run is being stopped.
    pub(super) fn guard(&self) -> DropGuard {
        self.ended.clone().drop_guard()
    }
}

/// When a pipeline begins, and when it is stopped.
pub(super) struct Turn {
    chain_stop: CancellationToken,
    readers: Vec<CancellationToken>,
    writers: Vec<CancellationToken>,
}

impl Turn {
    /// The turn of one pipeline, in a run that `chain_stop` stops.
    pub(super) fn of(topology: &Topology, index: usize, lives: &[Life], chain_stop: CancellationToken) -> Self {
        let reads = |&at: &usize| topology.hears(at).contains(&index);
        let readers = (0..lives.len()).filter(reads).map(|at| lives[at].reads.clone()).collect();
        let writers = topology.hears(index).into_iter().map(|at| lives[at].ended.clone()).collect();
        Self { chain_stop, readers, writers }
    }

    /// Waits until whoever hears what this pipeline publishes reads; false when the run is stopped before.
    pub(super) async fn begin(&self) -> bool {
        let all = async {
            for reads in &self.readers {
                reads.cancelled().await;
            }
        };
        tokio::select! {
            biased;
            () = self.chain_stop.cancelled() => false,
            () = all => true,
        }
    }

    /// Waits until the run is stopped and all have ended that this pipeline hears.
    pub(super) async fn end(&self) {
        self.chain_stop.cancelled().await;
        for ended in &self.writers {
            ended.cancelled().await;
        }
    }
}
