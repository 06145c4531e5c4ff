//! A look at topics beside the chain.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::spawn_source;
use crate::broker::kafka::KafkaSource;
use crate::broker::{BrokerError, BrokerErrorKind, SourceContext, SourceEnd};
use crate::delivery::Tracker;
use crate::intake::{Bell, Delivery, Lanes};
use crate::spec::{BatchLimits, CommitSpec, Guarantee, KafkaConnection, KafkaSourceSpec, Order};

/// The batches of a tap.
const TAP_BATCH: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1 << 20, max_wait: Duration::ZERO };

/// Events of topics, for those who only look: a consumer group of its own beside the chain.
#[derive(Debug)]
pub struct Tap {
    lanes: Lanes,
    bell: Arc<Bell>,
    stop: CancellationToken,
    end: oneshot::Receiver<Result<SourceEnd, BrokerError>>,
}

/// Begins to read topics.
///
/// # Errors
/// When a setting is not accepted.
pub fn tap(connection: &KafkaConnection, spec: &KafkaSourceSpec, client: &str) -> Result<Tap, BrokerError> {
    let source = KafkaSource::new(connection, spec, client)?;
    let (tracker, bell, stop) = (Arc::new(Tracker::default()), Arc::new(Bell::default()), CancellationToken::new());
    let lanes = Lanes::new(1, Order::Partition, TAP_BATCH, &tracker, &bell);
    let context = SourceContext {
        lanes: lanes.clone(),
        tracker,
        bell: bell.clone(),
        stop: stop.clone(),
        reads: CancellationToken::new(),
        commit: CommitSpec::of(Guarantee::AtLeastOnce),
        caught_up: None,
        drain_timeout: Duration::ZERO,
    };
    let end = spawn_source(client, source, context);
    Ok(Tap { lanes, bell, stop, end })
}

impl Tap {
    /// Waits for the next batch; `None` when the source has ended.
    pub async fn next(&self) -> Option<Delivery> {
        self.lanes.intakes()[0].take().await
    }

    /// Lets the source end, and waits until it has left the broker: it must not outlive a broker of this process.
    ///
    /// # Errors
    /// Why it had ended by itself.
    pub async fn end(self) -> Result<(), BrokerError> {
        self.stop.cancel();
        self.bell.ring();
        match self.end.await {
            // What had not ended was only looked at.
            Ok(end) => end.map(|_| ()),
            Err(_) => Err(BrokerError {
                kind: BrokerErrorKind::Fatal,
                action: "read topics".into(),
                reason: "the source's thread panicked; please report this as a defect of Fluxmill".into(),
            }),
        }
    }
}
