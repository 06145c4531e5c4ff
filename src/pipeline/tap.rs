//! A look at topics beside the chain.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::spawn_source;
use crate::broker::kafka::KafkaSource;
use crate::broker::{BrokerError, BrokerErrorKind, SourceContext, SourceEnd};
use crate::delivery::Tracker;
use crate::intake::{Bell, Delivery, Intake};
use crate::spec::{BatchLimits, KafkaConnection, KafkaSourceSpec};

/// The batches of a tap.
const TAP_BATCH: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1 << 20, max_wait: Duration::ZERO };

/// Events of topics, for those who only look: a consumer group of its own beside the chain.
#[derive(Debug)]
pub struct Tap {
    intake: Arc<Intake>,
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
    let intake = Arc::new(Intake::new(TAP_BATCH, tracker.clone(), bell.clone()));
    let context = SourceContext {
        intakes: vec![intake.clone()],
        tracker,
        bell: bell.clone(),
        stop: stop.clone(),
        caught_up: None,
        drain_timeout: Duration::ZERO,
    };
    let end = spawn_source(client, source, context);
    Ok(Tap { intake, bell, stop, end })
}

impl Tap {
    /// Waits for the next batch; `None` when the source has ended.
    pub async fn next(&self) -> Option<Delivery> {
        self.intake.take().await
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
