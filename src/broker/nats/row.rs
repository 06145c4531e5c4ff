//! A message as a row of a batch.

use std::borrow::Cow;

use async_nats::Message;

use super::mapping::{decode, last_token};
use crate::event::Origin;
use crate::intake::{Full, Run};
use crate::spec::NatsKey;

/// Where a message's key is, and the header that its subject is to be in.
pub(super) type Reading<'a> = (NatsKey, Option<&'a str>);

/// Appends a message; `arrived` is its time where it has none itself, in milliseconds since the Unix epoch.
///
/// # Errors
/// When the lane has no room.
pub(super) fn append(
    run: &mut Run<'_>,
    origin: Origin,
    message: &Message,
    arrived: i64,
    (key, subject_header): Reading<'_>,
) -> Result<(), Full> {
    let mut decoded = message.headers.as_ref().map(decode).unwrap_or_default();
    if let Some(name) = subject_header {
        let subject = Cow::Borrowed(message.subject.as_bytes());
        decoded.headers.push((Cow::Borrowed(name.as_bytes()), Some(subject)));
    }
    let key = match (decoded.key, key) {
        (None, NatsKey::LastToken) => Some(last_token(&message.subject)),
        (key, _) => key,
    };
    let value = (!decoded.is_tombstone).then_some(&*message.payload);
    let timestamp = decoded.timestamp.unwrap_or(arrived);
    let headers = decoded.headers.iter().map(|(name, value)| (&**name, value.as_deref()));
    run.append(origin, key.as_deref(), value, timestamp, headers)
}
