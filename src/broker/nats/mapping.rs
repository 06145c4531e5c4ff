//! What an event is on NATS, and what a message is as an event. Pure; docs/nats.md says the same for people.
//!
//! A message of NATS has a subject, headers and a payload. Its header names are visible ASCII without `:`, its values
//! are text in one line, there is no null, and clients keep the values of one name in order but not the names. An event
//! has a key, a value that may be null, a timestamp, and headers that are any bytes in any order. What does not fit is
//! carried in four headers of Fluxmill's own, so that an event that goes over NATS is the same event afterwards.

use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The event's key: as text, or `base64:` and the bytes.
pub(super) const KEY: &str = "Fluxmill-Key";
/// The event's time, milliseconds since the Unix epoch.
pub(super) const TIMESTAMP: &str = "Fluxmill-Timestamp";
/// There when the value is null.
pub(super) const TOMBSTONE: &str = "Fluxmill-Tombstone";
/// The event's headers in order, where NATS alone would not keep them.
pub(super) const HEADERS: &str = "Fluxmill-Headers";
/// By what the server knows a message that it has already.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";
/// What begins headers that are meant for the server.
const SERVERS: &str = "Nats-";
/// What begins bytes in a place for text.
const BYTES: &str = "base64:";

/// A header of an event: its name, and its value or null.
pub(super) type Pair<'a> = (Cow<'a, [u8]>, Option<Cow<'a, [u8]>>);

/// What is in a message beside its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded<'a> {
    pub(super) key: Option<Cow<'a, [u8]>>,
    /// None: the message has none, and the time at which it was stored counts.
    pub(super) timestamp: Option<i64>,
    pub(super) is_tombstone: bool,
    pub(super) headers: Vec<Pair<'a>>,
}

/// The headers of an event's message, without its id.
pub(super) fn encode<'a>(
    key: Option<&[u8]>,
    is_tombstone: bool,
    timestamp: i64,
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
) -> HeaderMap {
    let mut map = HeaderMap::new();
    if let Some(key) = key {
        map.insert(HeaderName::from_static(KEY), value(&text_or_bytes(key)));
    }
    map.insert(HeaderName::from_static(TIMESTAMP), HeaderValue::from(timestamp));
    if is_tombstone {
        map.insert(HeaderName::from_static(TOMBSTONE), value("1"));
    }
    let is_plain = |(name, value): (&[u8], Option<&[u8]>)| is_name(name) && value.is_some_and(is_text);
    let mut count = 0;
    let mut all_plain = true;
    for header in headers.clone() {
        count += 1;
        all_plain &= is_plain(header);
    }
    let mut list = String::new();
    for (name, content) in headers {
        if count > 1 || !all_plain {
            if !list.is_empty() {
                list.push(',');
            }
            percent(name, &mut list);
            match content {
                None => list.push('!'),
                Some(bytes) if !is_plain((name, content)) => {
                    list.push('=');
                    STANDARD.encode_string(bytes, &mut list);
                    continue;
                }
                Some(_) => {}
            }
        }
        if let (true, Some(bytes)) = (is_plain((name, content)), content) {
            map.append(text(name), value(text(bytes)));
        }
    }
    if !list.is_empty() {
        map.insert(HeaderName::from_static(HEADERS), value(&list));
    }
    map
}

/// What the headers of a message say.
pub(super) fn decode(map: &HeaderMap) -> Decoded<'_> {
    let mut decoded = Decoded::default();
    let mut list = None;
    let mut others: Vec<(&str, &[HeaderValue], usize)> = Vec::new();
    for (name, values) in map.iter() {
        let name: &str = name.as_ref();
        let Some(first) = values.first() else { continue };
        if name.eq_ignore_ascii_case(KEY) {
            decoded.key = Some(bytes_of(first.as_str()));
        } else if name.eq_ignore_ascii_case(TIMESTAMP) {
            decoded.timestamp = first.as_str().trim().parse().ok();
        } else if name.eq_ignore_ascii_case(TOMBSTONE) {
            decoded.is_tombstone = true;
        } else if name.eq_ignore_ascii_case(HEADERS) {
            list = Some(first.as_str());
        } else if !is_servers(name) {
            others.push((name, values.as_slice(), 0));
        }
    }
    for entry in list.into_iter().flat_map(|list| list.split(',')) {
        let (name, content) = match (entry.strip_suffix('!'), entry.split_once('=')) {
            (Some(name), _) => (name, Some(None)),
            (None, Some((name, content))) => (name, STANDARD.decode(content).ok().map(|bytes| Some(bytes.into()))),
            (None, None) => (entry, None),
        };
        let Some(name) = unpercent(name) else { continue };
        match content {
            Some(content) => decoded.headers.push((name.into(), content)),
            None => {
                // Its next value stands in its own header; one that is gone was taken out on the way.
                let own = others
                    .iter_mut()
                    .find(|(other, values, used)| other.as_bytes() == name.as_slice() && *used < values.len());
                if let Some((other, values, used)) = own {
                    decoded.headers.push((other.as_bytes().into(), Some(values[*used].as_str().as_bytes().into())));
                    *used += 1;
                }
            }
        }
    }
    // What nobody listed: in no order of its own, so in one that is always the same.
    others.sort_unstable_by_key(|(name, ..)| *name);
    for (name, values, used) in others {
        let rest = values[used..].iter().map(|value| Some(value.as_str().as_bytes().into()));
        decoded.headers.extend(rest.map(|value| (name.as_bytes().into(), value)));
    }
    decoded
}

/// Whether an event's header of this name can be a message's: NATS takes it, and it means nothing to the server or to
/// Fluxmill.
fn is_name(name: &[u8]) -> bool {
    let is_legal = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b':');
    is_legal && {
        let name = text(name);
        let own = [KEY, TIMESTAMP, TOMBSTONE, HEADERS];
        !is_servers(name) && !own.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

fn is_servers(name: &str) -> bool {
    name.get(..SERVERS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(SERVERS))
}

/// Whether these bytes can be a header's value as they are: text in one line that nobody trims.
fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| {
        let edges = [text.chars().next(), text.chars().next_back()];
        !edges.into_iter().flatten().any(char::is_whitespace) && !text.chars().any(char::is_control)
    })
}

/// Text as it is, anything else as `base64:` and what it is.
fn text_or_bytes(bytes: &[u8]) -> Cow<'_, str> {
    if !bytes.is_empty() && is_text(bytes) && !bytes.starts_with(BYTES.as_bytes()) {
        return Cow::Borrowed(text(bytes));
    }
    let mut encoded = BYTES.to_owned();
    STANDARD.encode_string(bytes, &mut encoded);
    Cow::Owned(encoded)
}

/// The bytes that [`text_or_bytes`] was given. What only looks like base64 was written by somebody else, as text.
fn bytes_of(value: &str) -> Cow<'_, [u8]> {
    match value.strip_prefix(BYTES).map(|encoded| STANDARD.decode(encoded.trim())) {
        Some(Ok(bytes)) => Cow::Owned(bytes),
        _ => Cow::Borrowed(value.as_bytes()),
    }
}

/// What was checked to be text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// A value without a line break, which is what async-nats would panic at.
fn value(text: &str) -> HeaderValue {
    text.parse().unwrap_or_default()
}

/// Letters, digits, `-` and `_` as they are, every other byte as `%` and two hexadecimal digits.
fn percent(bytes: &[u8], into: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.push(char::from(DIGITS[usize::from(byte >> 4)]));
            into.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// The bytes that [`percent`] was given; none when it cannot have been.
fn unpercent(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Some(bytes)
}

/// Bytes of a subject at most: the server takes 4,096 of a whole control line.
const SUBJECT_MAX: usize = 1024;

/// Where events go: a target's subject, in which `{key}` stands for the event's key.
#[derive(Debug)]
pub(super) struct Subject {
    template: String,
    /// What is between the keys.
    parts: Vec<String>,
}

impl Subject {
    pub(super) fn new(template: &str) -> Self {
        Self { template: template.to_owned(), parts: template.split("{key}").map(str::to_owned).collect() }
    }

    /// What it was made of.
    pub(super) fn template(&self) -> &str {
        &self.template
    }

    /// Whether this subject may be one that is made here.
    pub(super) fn may_be(&self, subject: &str) -> bool {
        let [first, .., last] = self.parts.as_slice() else { return subject == self.template };
        let key = subject.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()));
        // With one key in it, which has no dot; with more of them it is not looked at closely.
        subject == self.template || key.is_some_and(|key| self.parts.len() > 2 || !key.contains('.'))
    }

    /// The subject of an event.
    ///
    /// # Errors
    /// When the subject gets too long.
    pub(super) fn with(&self, key: Option<&[u8]>) -> Result<String, String> {
        // A token cannot be empty.
        let key = key.filter(|key| !key.is_empty()).unwrap_or(b"_");
        let mut parts = self.parts.iter();
        let keys = self.parts.len() - 1;
        // Exactly enough, unless something in the key is written in another way.
        let mut subject = String::with_capacity(self.template.len() - keys * "{key}".len() + keys * key.len());
        subject.push_str(parts.next().map_or("", String::as_str));
        for part in parts {
            percent(key, &mut subject);
            subject.push_str(part);
        }
        if subject.len() > SUBJECT_MAX {
            return Err(format!("with its key, the subject has {} bytes, of at most {SUBJECT_MAX}", subject.len()));
        }
        Ok(subject)
    }
}

/// The key that the last token of a subject stands for.
pub(super) fn last_token(subject: &str) -> Cow<'_, [u8]> {
    let token = subject.rsplit('.').next().unwrap_or_default();
    let read = if token.contains('%') { unpercent(token) } else { None };
    read.map_or(Cow::Borrowed(token.as_bytes()), Cow::Owned)
}

/// The id by which the server knows an event that was published twice: the same one each time that it is made of the
/// same event. `place` is a stream, or a topic and its partition.
pub(super) fn message_id(place: &str, offset: i64, pipeline: &str, output: &str, nth: u32) -> String {
    format!("{place}:{offset}:{pipeline}:{output}:{nth}")
}

#[cfg(test)]
mod tests;
