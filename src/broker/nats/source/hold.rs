//! One process at a time reads by a durable consumer: the others wait for its end.
//!
//! Whoever reads has a subscription to a subject that stands for the consumer. Whoever wants to asks there: when nobody
//! is subscribed the server says so at once. When two see that at the same moment, both miss deliveries, and neither
//! loses one.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Request, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::BrokerError;
use crate::broker::nats::connection::Connection;
use crate::spec::NatsSourceSpec;

/// How long nobody may answer who is there all the same.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time between two looks. Chance adds up to as much, so that two processes do not look at once.
const PAUSE: Duration = Duration::from_millis(150);
/// How long after an outage the one who has it may need to be back: more than the longest pause between two attempts to
/// connect.
const BACK: Duration = Duration::from_secs(3);

/// The right to read by a durable consumer, as long as this lives.
pub(super) struct Hold(Subscriber);

impl Hold {
    /// Waits until nobody else has it; none when `stop` was cancelled first.
    ///
    /// # Errors
    /// When the server does not permit to ask.
    pub(super) async fn get(
        connection: &Connection,
        spec: &NatsSourceSpec,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, BrokerError> {
        let subject = format!("_INBOX.fluxmill.{}.{}", spec.stream, spec.durable);
        let (mut free, mut said) = (0, false);
        let (mut epoch, mut not_before) = (connection.link.epoch(), Instant::now());
        while !stop.is_cancelled() {
            let request = Request::new().timeout(Some(ASK_TIMEOUT));
            let asked = connection.client.send_request(subject.clone(), request).await;
            if let Some(refusal) = connection.refusal(|| format!("ask who reads by durable consumer {}", spec.durable))
            {
                return Err(refusal);
            }
            let before = std::mem::replace(&mut epoch, connection.link.epoch());
            if epoch != before {
                not_before = Instant::now() + BACK;
            }
            match asked.map_err(|error| error.kind()) {
                // Twice: who has it may be about to say so.
                Err(RequestErrorKind::NoResponders) if Instant::now() >= not_before => free += 1,
                Ok(_) | Err(RequestErrorKind::TimedOut) if connection.link.epoch().is_some() => {
                    free = 0;
                    if !std::mem::replace(&mut said, true) {
                        let (durable, stream) = (&spec.durable, &spec.stream);
                        tracing::info!(target: "fluxmill::nats", "another process reads stream {stream} by durable consumer {durable}; waiting for its end");
                    }
                }
                Ok(_) | Err(_) => free = 0,
            }
            if free == 2
                && let Ok(subscriber) = connection.client.subscribe(subject.clone()).await
            {
                return Ok(Some(Self(subscriber)));
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE + PAUSE.mul_f64(fastrand::f64())) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(None)
    }

    /// Forgets who asked. Must be called now and then.
    pub(super) fn forget(&mut self) {
        while let Some(Some(_)) = self.0.next().now_or_never() {}
    }
}
