//! Properties that must fit each other. librdkafka finds these when a client is made; here they are found before, and for
//! the columnar client too.

use super::columnar::RESPONSE_FRAME;
use super::properties::Written;
use crate::config::error::{Kind, Mistake};
use crate::spec::{ColumnarSettings, KafkaClient};

/// librdkafka's defaults.
const SESSION_TIMEOUT_DEFAULT: u64 = 45_000;
const POLL_INTERVAL_DEFAULT: u64 = super::connection::POLL_INTERVAL_DEFAULT;
const CONSUMER_MESSAGE_DEFAULT: u64 = 1_000_000;
const FETCH_DEFAULT: u64 = 52_428_800;
/// Fluxmill's default for `queued.max.messages.kbytes`.
const QUEUE_DEFAULT_KB: u64 = 16_384;

/// The properties of a connection.
struct Properties<'a> {
    written: &'a [Written<'a>],
}

/// A number and what it is called.
#[derive(Clone, Copy)]
struct Quantity<'a> {
    name: &'static str,
    /// In the unit of the property.
    value: u64,
    /// In the unit in which it is compared.
    compared: u64,
    written: Option<&'a Written<'a>>,
}

impl<'a> Properties<'a> {
    /// A property, or what holds when it is not written.
    fn get(&self, name: &'static str, default: u64) -> Quantity<'a> {
        let canonical = super::librdkafka::Property::find(name).map(|property| property.canonical());
        let written = self.written.iter().find(|one| Some(one.property.canonical()) == canonical);
        let value = written.and_then(Written::whole).unwrap_or(default);
        Quantity { name, value, compared: value, written }
    }
}

impl Quantity<'_> {
    fn times(self, factor: u64) -> Self {
        Self { compared: self.compared.saturating_mul(factor), ..self }
    }

    fn plus(self, more: u64) -> Self {
        Self { compared: self.compared.saturating_add(more), ..self }
    }
}

/// Notes every pair that does not fit.
pub(super) fn check(written: &[Written<'_>], client: &KafkaClient, mistakes: &mut Vec<Mistake>) {
    let properties = Properties { written };
    let defaults = ColumnarSettings::default();
    let size = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    // Both clients begin with the same bounds of what is sent.
    let event = properties.get("message.max.bytes", size(defaults.message_bytes_max));
    let buffer = properties.get("queue.buffering.max.kbytes", size(defaults.buffer_bytes) / 1024).times(1024);
    fit(event, buffer, 1024, "an event would wait for room for ever", mistakes);
    let frame = size(RESPONSE_FRAME);
    let (fetch, response) = match client {
        KafkaClient::Columnar(settings) => {
            let batch = properties.get("batch.size", size(defaults.batch_bytes));
            if batch.written.is_some() || event.compared <= buffer.compared {
                fit(batch, buffer, 1024, "a record batch would wait for room for ever", mistakes);
            }
            let response = properties.get("receive.message.max.bytes", size(settings.response_bytes_max));
            (properties.get("fetch.max.bytes", size(defaults.fetch_bytes)), response)
        }
        KafkaClient::Librdkafka => {
            // A consumer's default for it is not the producer's.
            let event = properties.get("message.max.bytes", CONSUMER_MESSAGE_DEFAULT);
            let queue = properties.get("queued.max.messages.kbytes", QUEUE_DEFAULT_KB).times(1024);
            let default = queue.compared.min(FETCH_DEFAULT).max(event.compared);
            let fetch = properties.get("fetch.max.bytes", default);
            fit(event, fetch, 1, "a consumer of librdkafka asks for it", mistakes);
            (fetch, properties.get("receive.message.max.bytes", u64::MAX))
        }
    };
    fit(fetch.plus(frame), response, 1, "a full response would be refused", mistakes);
    let (first, longest) = defaults.reconnect_backoff;
    let millis = |wait: std::time::Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let first = properties.get("reconnect.backoff.ms", millis(first));
    let longest = properties.get("reconnect.backoff.max.ms", millis(longest));
    fit(first, longest, 1, "the first wait cannot be longer than the longest", mistakes);
    let session = properties.get("session.timeout.ms", SESSION_TIMEOUT_DEFAULT);
    let poll = properties.get("max.poll.interval.ms", POLL_INTERVAL_DEFAULT);
    fit(session, poll, 1, "a consumer of librdkafka asks for it", mistakes);
}

/// Whether the lesser is at most the greater; `unit` is how much one of the greater counts in the comparison.
fn fit(lesser: Quantity<'_>, greater: Quantity<'_>, unit: u64, why: &str, mistakes: &mut Vec<Mistake>) {
    if lesser.compared <= greater.compared {
        return;
    }
    let Some(place) = greater.written.or(lesser.written) else { return };
    let of = |quantity: Quantity<'_>| match quantity.written {
        Some(written) => format!("`{}` = {}", written.property.name, quantity.value),
        None => format!("`{}` = {}, its default,", quantity.name, quantity.value),
    };
    let message = format!("{} does not fit into {}: {why}", of(lesser), of(greater).trim_end_matches(','));
    let least = lesser.compared.div_ceil(unit);
    let name = greater.written.map_or(greater.name, |written| written.property.name);
    let lower = lesser.written.map_or(lesser.name, |written| written.property.name);
    let help = format!("write `{name}: {least}` or more, or lower `{lower}`");
    let mut mistake = Mistake::at(Kind::PropertiesClash, place.span.clone(), message).help(help);
    if let (Some(greater), Some(lesser)) = (greater.written, lesser.written)
        && greater.span != lesser.span
    {
        mistake = mistake.label("this").other(lesser.span.clone(), "against this");
    }
    mistakes.push(mistake);
}
