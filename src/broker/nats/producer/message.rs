//! The messages of a publication: pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::Sender;
use crate::broker::BrokerErrorKind;
use crate::broker::nats::mapping::{self, Subject};
use crate::delivery::Slot;
use crate::event::{ColumnSource, Publication};

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

/// An event that cannot be a message.
pub(super) struct Unmade {
    pub(super) at: u32,
    pub(super) cause: u32,
    pub(super) kind: BrokerErrorKind,
    pub(super) reason: String,
}

/// Makes the messages of a publication, the same ones each time: what has to be sent again is made again, so that nothing
/// is copied for that.
pub(super) struct Maker {
    publication: Publication,
    subject: Arc<Subject>,
    /// Without one it is core NATS.
    sender: Option<Arc<Sender>>,
    /// The largest message, in bytes, where that is known.
    largest: Option<usize>,
    /// For each published event of the outcome, which one of its cause it is in its output.
    numbers: Vec<u32>,
    /// Where the events of each slot come from, as ids begin, where that is known still.
    places: BTreeMap<Slot, Option<String>>,
    /// All values: payloads are parts of it, without a copy.
    values: Bytes,
}

impl Maker {
    pub(super) fn new(
        publication: Publication,
        subject: &Arc<Subject>,
        sender: Option<&Arc<Sender>>,
        largest: Option<usize>,
    ) -> Self {
        let mut places = BTreeMap::new();
        for at in 0..sender.map_or(0, |_| publication.len()) {
            let slot = publication.input.origin(publication.cause(at) as usize).slot;
            places.entry(slot).or_insert_with(|| sender.and_then(|sender| sender.place(slot)));
        }
        let values = match &publication.outcome.values {
            ColumnSource::Inherit => publication.input.values.values(),
            ColumnSource::Replace(own) => own.values(),
        };
        let values = Bytes::from_owner(values.clone());
        let (numbers, subject, sender) = (publication.numbers(), Arc::clone(subject), sender.cloned());
        Self { publication, subject, sender, largest, numbers, places, values }
    }

    /// The number of events.
    pub(super) fn len(&self) -> usize {
        self.publication.len()
    }

    /// The row of the input that an event was made of.
    pub(super) fn cause(&self, at: usize) -> u32 {
        self.publication.cause(at)
    }

    /// The subject, with `{key}` where it has one.
    pub(super) fn subject(&self) -> &str {
        self.subject.template()
    }

    /// What subjects are made of, the same one for all that a sink publishes.
    pub(super) fn target(&self) -> &Arc<Subject> {
        &self.subject
    }

    /// Whether a stream stores what is made, and says so.
    pub(super) fn is_stored(&self) -> bool {
        self.sender.is_some()
    }

    /// The message of an event.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn message(&self, at: usize) -> Result<Message, Unmade> {
        let (event, cause) = (self.publication.event(at), self.cause(at));
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        let unmade = |kind, reason| Unmade { at: number, cause, kind, reason };
        let subject = self.subject.with(event.key).map_err(|reason| unmade(BrokerErrorKind::Refused, reason))?;
        let mut headers = mapping::encode(event.key, event.value.is_none(), event.timestamp, event.headers);
        if let Some(id) = self.id(at, cause) {
            // No name in it has a line break, which is what this would panic at: `config` and the brokers see to that.
            headers.insert(HeaderName::from_static(mapping::MESSAGE_ID), HeaderValue::from(id));
        }
        let value = event.value.unwrap_or_default();
        let bytes = size(&headers) + value.len();
        match self.largest {
            Some(largest) if bytes > largest => {
                let reason =
                    format!("it has {bytes} bytes with its headers, and the server takes {largest} (`max_payload`)");
                Err(unmade(BrokerErrorKind::TooLarge, reason))
            }
            _ => Ok(Message { at: number, cause, subject, headers, payload: self.values.slice_ref(value), bytes }),
        }
    }

    fn id(&self, at: usize, cause: u32) -> Option<String> {
        let sender = self.sender.as_deref()?;
        let origin = self.publication.input.origin(cause as usize);
        let place = self.places.get(&origin.slot)?.as_deref()?;
        let number = self.numbers[self.publication.published(at)];
        Some(mapping::message_id(place, origin.offset, &sender.pipeline, &sender.output, number))
    }
}

/// Bytes of headers on the wire.
fn size(headers: &HeaderMap) -> usize {
    let of = |name: &HeaderName, value: &HeaderValue| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4;
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| of(name, value)));
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}
