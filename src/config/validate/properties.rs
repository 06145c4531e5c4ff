//! librdkafka properties: which exist, which a user may not set because they would break a guarantee or Fluxmill sets
//! them itself, and which values they take. What the columnar client makes of them is said by `columnar`.

use super::librdkafka::{KNOWN, Property, Takes};
use crate::config::error::{Kind, Mistake, Span};
use crate::config::read::{Named, similar};
use crate::config::scalar::Text;
use crate::config::shape::one_of;
use crate::config::units;

/// Why a property is refused, and what to write instead.
pub(crate) struct Refused {
    /// The property.
    pub(crate) name: &'static str,
    /// Why, as the end of "is refused: ...".
    pub(crate) why: &'static str,
    /// What to write instead.
    pub(crate) instead: &'static str,
}

/// Defines the table.
macro_rules! refused {
    ($($($name:literal)|+ => $why:literal, $instead:literal;)*) => {
        /// Every refused property.
        pub(crate) const REFUSED: &[Refused] =
            &[$($(Refused { name: $name, why: $why, instead: $instead },)+)*];
    };
}

refused! {
    "bootstrap.servers" | "metadata.broker.list" => "addresses have a key of their own", "write `brokers: [...]`";
    "group.id" => "the group has a key of its own", "write `from: { kafka: { group: ... } }`";
    "group.instance.id" => "it has a key of its own", "write `from: { kafka: { instance: ... } }`";
    "group.protocol" | "group.protocol.type" | "group.remote.assignor" | "partition.assignment.strategy" =>
        "Fluxmill drains partitions before it gives them up, and relies on cooperative-sticky assignment for that",
        "delete it";
    "enable.auto.commit" | "auto.commit.enable" | "auto.commit.interval.ms" | "enable.auto.offset.store" | "offset.store.method" =>
        "an offset is committed only when all events up to it are done; that would commit others",
        "delete it";
    "offset.store.path" | "offset.store.sync.interval.ms" => "the broker keeps the offsets", "delete it";
    "auto.offset.reset" => "the start has a key of its own", "write `from: { kafka: { start: earliest } }`";
    "enable.partition.eof" | "enabled_events" | "log.queue" => "Fluxmill sets it itself", "delete it";
    "isolation.level" => "with `read_uncommitted` events of aborted transactions would be processed", "delete it: the default is `read_committed`";
    "acks" | "request.required.acks" =>
        "an event counts as published when all in-sync replicas have it; fewer would lose events",
        "delete it";
    "enable.idempotence" | "enable.gapless.guarantee" | "max.in.flight" | "max.in.flight.requests.per.connection"
        | "retries" | "message.send.max.retries" | "queuing.strategy" =>
        "Fluxmill publishes idempotently, so that sending again neither doubles nor reorders events",
        "delete it";
    "message.timeout.ms" | "delivery.timeout.ms" =>
        "an event that waits for its broker is not given up",
        "delete it";
    "delivery.report.only.error" => "every acknowledgement counts: without them nothing would be committed", "delete it";
    "transactional.id" => "Fluxmill names its transactions itself, so that no two processes share one",
        "delete it; with `instance` in `from: { kafka: ... }` a process that comes back has the same one";
    "partitioner" =>
        "events with the same key must reach the same partition as from any Java client (murmur2)",
        "delete it";
    "allow.auto.create.topics" => "a misspelt topic would be created instead of refused", "list the topic under `topics`";
    "security.protocol" => "it follows from `tls` and `sasl`", "write `tls: {}`, `sasl: {...}`, or both";
    "ssl.ca.location" => "it has a key of its own", "write `tls: { ca: ca.pem }`";
    "ssl.certificate.location" | "ssl.key.location" =>
        "it has a key of its own",
        "write `tls: { certificate: client.pem, key: client.key }`";
    "sasl.mechanism" | "sasl.mechanisms" | "sasl.username" | "sasl.password" =>
        "it has a key of its own",
        "write `sasl: { mechanism: SCRAM-SHA-512, username: ..., password: ... }`";
    "sasl.kerberos.service.name" | "sasl.kerberos.principal" | "sasl.kerberos.kinit.cmd" | "sasl.kerberos.keytab"
        | "sasl.kerberos.min.time.before.relogin" =>
        "Kerberos is not available",
        "write `sasl: { mechanism: SCRAM-SHA-512, username: ..., password: ... }`";
    "enable.sasl.oauthbearer.unsecure.jwt" | "sasl.oauthbearer.config" | "sasl.oauthbearer.method"
        | "sasl.oauthbearer.client.id" | "sasl.oauthbearer.client.credentials.client.id"
        | "sasl.oauthbearer.client.credentials.client.secret" | "sasl.oauthbearer.client.secret"
        | "sasl.oauthbearer.scope" | "sasl.oauthbearer.extensions" | "sasl.oauthbearer.token.endpoint.url"
        | "sasl.oauthbearer.grant.type" | "sasl.oauthbearer.assertion.algorithm"
        | "sasl.oauthbearer.assertion.private.key.file" | "sasl.oauthbearer.assertion.private.key.passphrase"
        | "sasl.oauthbearer.assertion.private.key.pem" | "sasl.oauthbearer.assertion.file"
        | "sasl.oauthbearer.assertion.claim.aud" | "sasl.oauthbearer.assertion.claim.exp.seconds"
        | "sasl.oauthbearer.assertion.claim.iss" | "sasl.oauthbearer.assertion.claim.jti.include"
        | "sasl.oauthbearer.assertion.claim.nbf.seconds" | "sasl.oauthbearer.assertion.claim.sub"
        | "sasl.oauthbearer.assertion.jwt.template.file" | "sasl.oauthbearer.metadata.authentication.type"
        | "https.ca.location" | "https.ca.pem" =>
        "Fluxmill fetches no tokens; it is given one",
        "write `sasl: { mechanism: OAUTHBEARER, token_file: ... }`";
    "plugin.library.paths" | "ssl.engine.location" | "ssl.engine.id" | "ssl.providers" => "it loads foreign code into the process", "delete it";
    "test.mock.num.brokers" | "test.mock.broker.rtt" => "it replaces the brokers by a mock that keeps nothing", "delete it";
}

/// Why the property cannot be set to the value.
fn refused(name: &str, value: Option<&str>) -> Option<&'static Refused> {
    if name == "isolation.level" && value == Some("read_committed") {
        return None;
    }
    REFUSED.iter().find(|refused| refused.name == name.trim())
}

/// A property that exists, may be set, and has a value that it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written<'f> {
    /// The property.
    pub(super) property: &'static Property,
    /// The value, without space around it.
    pub(super) text: &'f str,
    /// The place of the name.
    pub(super) span: &'f Span,
}

impl Written<'_> {
    /// The value as a whole number.
    pub(super) fn whole(&self) -> Option<u64> {
        self.text.parse().ok()
    }
}

/// Reads a property as far as that can be done without knowing the client. `None`: a mistake was noted, here or by
/// the reader.
pub(super) fn read<'f>(entry: &'f Named<Text>, mistakes: &mut Vec<Mistake>) -> Option<Written<'f>> {
    let value = entry.value.as_ref().map(|value| value.0.trim());
    let at = |kind, message| Mistake::at(kind, entry.span.clone(), message);
    if let Some(refused) = refused(&entry.name, value) {
        let message = format!("`{}` is refused: {}", refused.name, refused.why);
        mistakes.push(at(Kind::RefusedProperty, message).help(refused.instead));
        return None;
    }
    let Some(property) = Property::find(&entry.name) else {
        let message = format!("librdkafka has no property `{}`", entry.name.escape_debug());
        let known = KNOWN.iter().filter(|property| property.takes != Takes::Program).map(|property| property.name);
        let meant = similar(&entry.name, known);
        let help = match (meant, REFUSED.iter().find(|refused| Some(refused.name) == meant)) {
            (Some(meant), Some(refused)) => format!("did you mean `{meant}`? {}", refused.instead),
            (Some(meant), None) => format!("did you mean `{meant}`?"),
            (None, _) => "delete it; docs/configuration.md says which there are".to_owned(),
        };
        mistakes.push(at(Kind::UnknownProperty, message).help(help));
        return None;
    };
    let text = value?;
    match checked(property, text) {
        Ok(()) => Some(Written { property, text, span: &entry.span }),
        Err((kind, message, help)) => {
            mistakes.push(at(kind, message).help(help));
            None
        }
    }
}

/// Whether librdkafka takes the value. It reads `5min` as 5; that is refused here.
fn checked(property: &Property, text: &str) -> Result<(), (Kind, String, String)> {
    let name = property.name;
    let malformed = |what: &str, help: String| {
        Err((Kind::Malformed, format!("`{name}` must be {what}, but `{}` is not", text.escape_debug()), help))
    };
    let unknown = |words: &[&'static str], text: &str| {
        let words = words.iter().copied();
        let message = format!("`{name}` must be {}, not `{}`", one_of(words.clone()), text.escape_debug());
        let help = match similar(text, words.clone()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("write {}", one_of(words)),
        };
        Err((Kind::UnknownWord, message, help))
    };
    let is_one = |words: &[&str], text: &str| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    match property.takes {
        Takes::Text => Ok(()),
        Takes::Flag if flag(text).is_some() => Ok(()),
        Takes::Flag => unknown(&["true", "false"], text),
        Takes::Whole(min, max) => match text.parse::<i64>() {
            Ok(value) => bounded(name, value, (min, max)),
            Err(_) => malformed("a whole number", plain_number(name, text, (min, max))),
        },
        Takes::Decimal(min, max) => match text.parse::<f64>() {
            Ok(value) if value.is_nan() => malformed("a number", format!("write a number from {min} to {max}")),
            Ok(value) if value < min as f64 => bounded(name, min - 1, (min, max)),
            Ok(value) if value > max as f64 => bounded(name, max + 1, (min, max)),
            Ok(_) => Ok(()),
            Err(_) => malformed("a number", plain_number(name, text, (min, max))),
        },
        Takes::Word(words) if is_one(words, text) => Ok(()),
        Takes::Word(words) => unknown(words, text),
        Takes::Words(words) => {
            let mut parts = text.split(',').map(|part| part.trim().trim_start_matches(['+', '-']));
            match parts.find(|part| !part.is_empty() && !is_one(words, part)) {
                Some(part) => unknown(words, part),
                None => Ok(()),
            }
        }
        Takes::Program => {
            let message = format!("`{name}` is refused: only a program can set it");
            Err((Kind::RefusedProperty, message, "delete it".to_owned()))
        }
    }
}

/// Within the bounds?
pub(super) fn bounded(name: &str, value: i64, (min, max): (i64, i64)) -> Result<(), (Kind, String, String)> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let help = format!("write `{name}: {}`", if value < min { min } else { max });
    Err((Kind::OutOfBounds, format!("`{name}` must be from {min} to {max}"), help))
}

/// `true` and `false` as librdkafka writes them.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(true),
        "false" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// What to write instead of a text that is no number; when it has a unit, the number that it means.
fn plain_number(name: &str, text: &str, (min, max): (i64, i64)) -> String {
    let meant = match name.rsplit('.').next() {
        Some("ms") => units::millis(text).ok().map(|value| (value, "milliseconds")),
        Some("kbytes") => units::size(text).ok().map(|value| (value / 1024, "kilobytes")),
        Some("bytes" | "size") => units::size(text).ok().map(|value| (value, "bytes")),
        _ => None,
    };
    match meant {
        Some((value, unit)) => format!("write `{name}: {value}`: it is a plain number of {unit}"),
        None => format!("write a number from {min} to {max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<String, Box<Mistake>> {
        let entry = Named { name: name.to_owned(), span: 0..1, value: Some(Text(value.to_owned())) };
        let mut mistakes = Vec::new();
        let read = super::read(&entry, &mut mistakes).map(|written| written.text.to_owned());
        read.ok_or_else(|| Box::new(mistakes.remove(0)))
    }

    #[test]
    fn values_that_librdkafka_takes() {
        for (name, value) in [
            ("session.timeout.ms", " 6000 "),
            ("linger.ms", "0.5"),
            ("log.connection.close", "TRUE"),
            ("log.connection.close", "f"),
            ("compression.type", "LZ4"),
            ("debug", "cgrp, -fetch,all"),
            ("debug", ""),
            ("client.rack", "any text"),
            ("isolation.level", "read_committed"),
        ] {
            assert_eq!(read(name, value).expect(name), value.trim());
        }
    }

    #[test]
    fn values_that_it_does_not() {
        for (name, value, kind, help) in [
            ("session.timeout.ms", "6s", Kind::Malformed, "write `session.timeout.ms: 6000`"),
            ("queued.max.messages.kbytes", "1MiB", Kind::Malformed, "write `queued.max.messages.kbytes: 1024`"),
            ("fetch.max.bytes", "1MiB", Kind::Malformed, "write `fetch.max.bytes: 1048576`"),
            ("batch.size", "2KiB", Kind::Malformed, "write `batch.size: 2048`"),
            ("session.timeout.ms", "soon", Kind::Malformed, "write a number from 1 to 3600000"),
            ("session.timeout.ms", "0", Kind::OutOfBounds, "write `session.timeout.ms: 1`"),
            ("linger.ms", "900000.5", Kind::OutOfBounds, "write `linger.ms: 900000`"),
            ("linger.ms", "nan", Kind::Malformed, "write a number from 0 to 900000"),
            ("linger.ms", "-1", Kind::OutOfBounds, "write `linger.ms: 0`"),
            ("check.crcs", "yes", Kind::UnknownWord, "write `true` or `false`"),
            ("compression.type", "zstandard", Kind::UnknownWord, "write `none`"),
            ("debug", "cgrp,fetsh", Kind::UnknownWord, "did you mean `fetch`?"),
            ("fetch.max.byte", "1", Kind::UnknownProperty, "did you mean `fetch.max.bytes`?"),
            ("Linger.ms", "1", Kind::UnknownProperty, "did you mean `linger.ms`?"),
            ("rebalance_cb", "1", Kind::RefusedProperty, "delete it"),
            ("isolation.level", "read_uncommitted", Kind::RefusedProperty, "delete it"),
        ] {
            let mistake = read(name, value).expect_err(name);
            assert_eq!(mistake.kind, kind, "{name}: {}", mistake.message);
            let found = mistake.help.expect("help");
            assert!(found.starts_with(help), "{name}: {found}");
        }
    }

    #[test]
    fn every_refused_property_exists() {
        for refused in REFUSED {
            // A mock cluster is not documented as a property of its own.
            let is_hidden = refused.name.starts_with("test.mock.");
            assert!(is_hidden || Property::find(refused.name).is_some(), "{}", refused.name);
        }
    }
}
