//! An event as a message: pure.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::Sender;
use crate::broker::BrokerErrorKind;
use crate::broker::nats::mapping;
use crate::event::{EventRef, Publication};

/// An event of a publication as a message.
pub(super) struct Message {
    /// Which event of the publication.
    pub(super) at: u32,
    /// The row of the input that it was made of.
    pub(super) cause: u32,
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
    /// Headers and payload on the wire.
    pub(super) bytes: usize,
}

/// The events of a publication with their numbers among those of one cause.
pub(super) struct Numbered<'a> {
    publication: &'a Publication,
    numbers: Vec<u32>,
}

impl<'a> Numbered<'a> {
    pub(super) fn of(publication: &'a Publication) -> Self {
        Self { publication, numbers: publication.numbers() }
    }

    /// The id of the message of the event at `at`, of which this is the place and the offset of the cause.
    pub(super) fn id(&self, place: &str, offset: i64, at: usize, sender: &Sender) -> String {
        let number = self.numbers[self.publication.published(at)];
        mapping::message_id(place, offset, &sender.pipeline, &sender.output, number)
    }
}

/// The message of an event. `largest` is what the server takes.
///
/// # Errors
/// Why there is none.
pub(super) fn make(
    template: &str,
    event: &EventRef<'_>,
    [at, cause]: [u32; 2],
    id: Option<String>,
    largest: Option<usize>,
) -> Result<Message, (BrokerErrorKind, String)> {
    let subject = mapping::subject(template, event.key).map_err(|reason| (BrokerErrorKind::Refused, reason))?;
    let mut headers = mapping::encode(event.key, event.value.is_none(), event.timestamp, event.headers.clone());
    if let Some(id) = id {
        headers.insert(HeaderName::from_static(mapping::MESSAGE_ID), id.parse().unwrap_or_else(|_| HeaderValue::new()));
    }
    let value = event.value.unwrap_or_default();
    let bytes = size(&headers) + value.len();
    match largest {
        Some(largest) if bytes > largest => {
            let reason =
                format!("it has {bytes} bytes with its headers, and the server takes {largest} (`max_payload`)");
            Err((BrokerErrorKind::TooLarge, reason))
        }
        _ => Ok(Message { at, cause, subject, headers, payload: Bytes::copy_from_slice(value), bytes }),
    }
}

/// Bytes of headers on the wire.
fn size(headers: &HeaderMap) -> usize {
    let of = |name: &HeaderName, value: &HeaderValue| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4;
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| of(name, value)));
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}
