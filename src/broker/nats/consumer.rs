//! A durable consumer: created or checked, set back to what it has confirmed, and what its acknowledgements say.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{ConsumerCreateStrictErrorKind, ConsumerResetErrorKind, RetentionPolicy, Stream};
use async_nats::jetstream::{self};

use super::connection::Connection;
use super::failed;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{NatsSourceSpec, StartOffset};

/// Messages that may be delivered and not acknowledged: several times what is fetched at once.
const ACK_PENDING_MAX: i64 = 100_000;

/// A durable consumer of one process.
pub(super) struct Durable {
    stream: Stream<()>,
    info: jetstream::stream::Info,
    name: String,
    /// Whether an acknowledgement is for everything up to its message.
    pub(super) acknowledges_all: bool,
}

/// How far a consumer and its stream are.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// The stream's last message.
    pub(super) last: u64,
    /// The last that was delivered.
    pub(super) delivered: u64,
    /// Messages that are still to be delivered for the first time.
    pub(super) pending: u64,
}

impl Durable {
    /// Creates the consumer, or checks the one that is there.
    ///
    /// # Errors
    /// When the stream is not there, the consumer has other settings, or the server refuses.
    pub(super) async fn open(connection: &Connection, spec: &NatsSourceSpec) -> Result<Self, BrokerError> {
        let address = &connection.address;
        let action = format!("read stream {} on {address}", spec.stream);
        let context = jetstream::new(connection.client.clone());
        let refused = |kind, reason: String| {
            connection.refusal(|| action.clone()).unwrap_or_else(|| failed(kind, action.clone(), reason))
        };
        let stream = context.get_stream_no_info(&spec.stream).await;
        let stream = stream.map_err(|error| refused(BrokerErrorKind::Fatal, error.to_string()))?;
        let info = stream.get_info().await.map_err(|error| refused(BrokerErrorKind::Unreachable, error.to_string()))?;
        // Work queues let a message go when it is acknowledged, each by itself.
        let acknowledges_all = info.config.retention != RetentionPolicy::WorkQueue;
        let wanted = config(spec, acknowledges_all);
        let durable = Self { stream, info, name: spec.durable.clone(), acknowledges_all };
        let found = match durable.stream.consumer_info(&spec.durable).await {
            Ok(found) => Some(found.config),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => None,
            Err(error) => return Err(refused(BrokerErrorKind::Unreachable, error.to_string())),
        };
        let found = match found {
            Some(found) => found,
            None => match durable.stream.create_consumer_strict(wanted.clone()).await {
                Ok(made) => made.cached_info().config.clone(),
                // Another process was faster, with other settings.
                Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => {
                    let found = durable.stream.consumer_info(&spec.durable).await;
                    found.map_err(|error| refused(BrokerErrorKind::Unreachable, error.to_string()))?.config
                }
                Err(error) => return Err(refused(BrokerErrorKind::Settings, error.to_string())),
            },
        };
        let others = differences(&found, &wanted);
        if others.is_empty() {
            return Ok(durable);
        }
        let reason = format!(
            "durable consumer {} is there with other settings: {}; write another `durable`, or delete it",
            spec.durable,
            others.join(", ")
        );
        Err(failed(BrokerErrorKind::Settings, action, reason))
    }

    /// Sets the consumer back to the last message that is confirmed, which it gives: everything behind that is delivered
    /// again, in order.
    ///
    /// What was delivered to a process that is gone, or lost with a connection, comes again only after its
    /// acknowledgement is overdue, behind newer messages; and an acknowledgement of these would be for it too.
    ///
    /// # Errors
    /// When the consumer is gone. None for what may pass.
    pub(super) async fn set_back(&self) -> Option<Result<u64, BrokerError>> {
        match self.stream.reset_consumer(&self.name, None).await {
            Ok(done) => Some(Ok(done.info.ack_floor.stream_sequence)),
            Err(error) if error.kind() == ConsumerResetErrorKind::InvalidReset => {
                Some(Err(failed(BrokerErrorKind::Settings, self.action(), error)))
            }
            Err(error) => {
                tracing::debug!(target: "fluxmill::nats", "{}: {error}; asked again", self.action());
                None
            }
        }
    }

    /// Whether the consumer or its stream is gone for sure.
    pub(super) async fn is_gone(&self) -> bool {
        matches!(self.stream.consumer_info(&self.name).await, Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound
            || error.kind() == ConsumerInfoErrorKind::StreamNotFound)
    }

    /// How far both are; none when they do not say now.
    pub(super) async fn state(&self) -> Option<State> {
        let stream = self.stream.get_info().await.ok()?;
        let consumer = self.stream.consumer_info(&self.name).await.ok()?;
        Some(State {
            last: stream.state.last_sequence,
            delivered: consumer.delivered.stream_sequence,
            pending: consumer.num_pending,
        })
    }

    /// Where to ask for messages.
    pub(super) fn next_subject(&self) -> String {
        format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.info.config.name, self.name)
    }

    pub(super) fn action(&self) -> String {
        format!("read stream {} by durable consumer {}", self.info.config.name, self.name)
    }
}

/// The settings that a source counts on.
fn config(spec: &NatsSourceSpec, acknowledges_all: bool) -> pull::Config {
    let (one, many) = match spec.subjects.as_slice() {
        [one] => (one.clone(), Vec::new()),
        many => (String::new(), many.to_vec()),
    };
    pull::Config {
        durable_name: Some(spec.durable.clone()),
        deliver_policy: match spec.start {
            StartOffset::Earliest => DeliverPolicy::All,
            StartOffset::Latest => DeliverPolicy::New,
            StartOffset::Time(millis) => {
                let nanos = i128::from(millis) * 1_000_000;
                let start = async_nats::datetime::from_nanos(nanos);
                start.map_or(DeliverPolicy::All, |start_time| DeliverPolicy::ByStartTime { start_time })
            }
        },
        ack_policy: if acknowledges_all { AckPolicy::All } else { AckPolicy::Explicit },
        ack_wait: spec.ack_wait,
        // For ever: what must not be tried again the pipeline decides.
        max_deliver: -1,
        filter_subject: one,
        filter_subjects: many,
        max_ack_pending: ACK_PENDING_MAX,
        ..pull::Config::default()
    }
}

/// What of a consumer that exists would break a promise, in words. Where it began is no matter any more.
fn differences(found: &Config, wanted: &pull::Config) -> Vec<String> {
    let mut others = Vec::new();
    let mut differs = |what: &str, is: String, must: String| {
        if is != must {
            others.push(format!("{what} is {is}, not {must}"));
        }
    };
    let subjects = |one: &str, many: &[String]| match (one, many) {
        ("", []) => "all".to_owned(),
        ("", many) => many.join(" "),
        (one, _) => one.to_owned(),
    };
    let wait = |wait: Duration| format!("{wait:?}");
    differs("delivery", found.deliver_subject.as_ref().map_or("pull", |_| "push").to_owned(), "pull".to_owned());
    differs("ack_policy", format!("{:?}", found.ack_policy), format!("{:?}", wanted.ack_policy));
    differs("ack_wait", wait(found.ack_wait), wait(wanted.ack_wait));
    let (is, must) = (&found.filter_subjects, &wanted.filter_subjects);
    differs("filter", subjects(&found.filter_subject, is), subjects(&wanted.filter_subject, must));
    differs("max_deliver", found.max_deliver.to_string(), wanted.max_deliver.to_string());
    differs("max_ack_pending", found.max_ack_pending.to_string(), wanted.max_ack_pending.to_string());
    differs("headers_only", found.headers_only.to_string(), "false".to_owned());
    differs("backoff", format!("{} steps", found.backoff.len()), "0 steps".to_owned());
    differs("max_batch", found.max_batch.to_string(), "0".to_owned());
    differs("max_bytes", found.max_bytes.to_string(), "0".to_owned());
    differs("max_expires", wait(found.max_expires), wait(Duration::ZERO));
    differs("priority groups", found.priority_groups.len().to_string(), "0".to_owned());
    others
}

/// Tokens of such a subject that are looked at.
const TOKENS: usize = 8;

/// What the subject says to which a delivery is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivered {
    /// The message's number in its stream.
    pub(super) stream: u64,
    /// How many deliveries of the consumer there were, this one included.
    pub(super) consumer: u64,
    /// When the message was stored, milliseconds since the Unix epoch.
    pub(super) timestamp: i64,
}

impl Delivered {
    /// Reads `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<nanoseconds>.<pending>`, or
    /// the same with domain and account in front of the stream.
    pub(super) fn of(reply: &str) -> Option<Self> {
        // Byte by byte: tokens are too short for a search to pay.
        let mut tokens = [&[][..]; TOKENS];
        let mut count = 0;
        for token in reply.strip_prefix("$JS.ACK.")?.as_bytes().split(|byte| *byte == b'.') {
            if let Some(place) = tokens.get_mut(count) {
                *place = token;
            }
            count += 1;
        }
        let first = match count {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let number = |at: usize| std::str::from_utf8(tokens[at]).ok()?.parse::<u64>().ok();
        let (stream, consumer, nanos) = (number(first)?, number(first + 1)?, number(first + 2)?);
        Some(Self { stream, consumer, timestamp: i64::try_from(nanos / 1_000_000).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_acknowledgements_are_read() {
        let delivered = Delivered { stream: 42, consumer: 7, timestamp: 1_700_000_000_000 };
        for reply in [
            "$JS.ACK.ORDERS.payment.1.42.7.1700000000000000000.9",
            "$JS.ACK._.hash.ORDERS.payment.1.42.7.1700000000000000000.9",
            "$JS.ACK.hub.hash.ORDERS.payment.1.42.7.1700000000000000000.9.token",
        ] {
            assert_eq!(Delivered::of(reply), Some(delivered), "{reply}");
        }
        for reply in ["", "$JS.ACK.", "_INBOX.a.b", "$JS.ACK.a.b.1.x.7.1.9", "$JS.ACK.a.b.1.2"] {
            assert_eq!(Delivered::of(reply), None, "{reply}");
        }
    }
}
