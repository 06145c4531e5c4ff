//! Connections: addresses, TLS, SASL, properties.

use std::collections::BTreeMap;

use super::{Validator, names, properties, texts};
use crate::config::error::{Kind, Mistake};
use crate::config::language::{Kafka, Mechanism, Pipeline, Tls};
use crate::config::read::{Field, Named};
use crate::config::scalar::{PemFile, Text};
use crate::spec::{ConnectionSpec, KafkaConnection, SaslMechanism, SaslSpec, TlsSpec};

/// How long the broker waits for a consumer when nothing else is said, in milliseconds (librdkafka's default).
pub(crate) const POLL_INTERVAL_DEFAULT: u64 = 300_000;

impl Validator<'_> {
    pub(super) fn connections(&mut self) -> BTreeMap<String, ConnectionSpec> {
        let field = &self.file.connections;
        let mut made = BTreeMap::new();
        let Some(map) = &field.value else { return made };
        if map.entries.is_empty() {
            let help = "add one: `main: { kafka: { brokers: [\"localhost:9092\"] } }`";
            let message = "there are no connections";
            self.mistakes.push(Mistake::at(Kind::EmptyCollection, field.span.clone(), message).help(help));
        }
        for entry in &map.entries {
            self.places.connections.insert(entry.name.clone(), entry.span.clone());
            let named = self.checked(names::connection(&entry.name), &entry.span);
            let kafka = entry.value.as_ref().and_then(|connection| connection.kafka.value.as_ref());
            let made_of = kafka.and_then(|kafka| self.kafka(kafka)).filter(|_| named);
            made.extend(made_of.map(|kafka| (entry.name.clone(), ConnectionSpec::Kafka(kafka))));
        }
        made
    }

    fn kafka(&mut self, kafka: &Kafka) -> Option<KafkaConnection> {
        let mut brokers = Vec::new();
        for item in kafka.brokers.value.as_deref().unwrap_or(&[]) {
            for address in item.value.0.split(',').map(str::trim) {
                if self.checked(names::broker(address), &item.span) {
                    brokers.push(address.to_owned());
                }
            }
        }
        let written = kafka.properties.value.as_ref().map_or(&[][..], |map| &map.entries);
        for property in written {
            self.property(property);
        }
        let tls = kafka.tls.value.as_ref().map(|tls| self.tls(tls));
        let sasl = match &kafka.sasl.value {
            None => None,
            Some(sasl) => Some(SaslSpec {
                mechanism: match sasl.mechanism.value? {
                    Mechanism::Plain => SaslMechanism::Plain,
                    Mechanism::Scram256 => SaslMechanism::ScramSha256,
                    Mechanism::Scram512 => SaslMechanism::ScramSha512,
                },
                username: sasl.username.value.as_ref()?.0.clone(),
                password: sasl.password.value.as_ref()?.0.clone(),
            }),
        };
        Some(KafkaConnection { brokers, tls, sasl, properties: texts(written) })
    }

    fn property(&mut self, property: &Named<Text>) {
        let value = property.value.as_ref().map(|value| value.0.as_str());
        if let Some(refused) = properties::refused(&property.name, value) {
            let message = format!("`{}` is refused: {}", refused.name, refused.why);
            let mistake = Mistake::at(Kind::RefusedProperty, property.span.clone(), message);
            self.mistakes.push(mistake.help(refused.instead));
        }
        if property.name == "max.poll.interval.ms" && value.is_some_and(|value| value.parse::<u64>().is_err()) {
            let message = "`max.poll.interval.ms` must be a whole number of milliseconds";
            let mistake = Mistake::at(Kind::Malformed, property.span.clone(), message);
            self.mistakes.push(mistake.help(format!("write `max.poll.interval.ms: {POLL_INTERVAL_DEFAULT}`")));
        }
    }

    fn tls(&mut self, tls: &Tls) -> TlsSpec {
        let (certificate, key) = (&tls.certificate, &tls.key);
        let half = match (certificate.is_written(), key.is_written()) {
            (true, false) => Some((certificate, "`certificate` needs its `key`", "add `key: client.key`")),
            (false, true) => Some((key, "`key` needs its `certificate`", "add `certificate: client.pem`")),
            _ => None,
        };
        if let Some((field, message, help)) = half {
            self.mistakes.push(Mistake::at(Kind::TlsPair, field.span.clone(), message).help(help));
        }
        let path = |field: &Field<PemFile>| field.value.as_ref().map(|path| path.0.clone());
        TlsSpec { ca: path(&tls.ca), certificate: path(certificate), key: path(key) }
    }

    /// How long the broker waits for the pipeline's consumer, and the connection that says so.
    pub(super) fn poll_interval(&self, pipeline: &Pipeline) -> (u64, String) {
        let source = pipeline.from.value.as_ref().and_then(|from| from.kafka.value.as_ref());
        let name = source.and_then(|source| source.connection.value.as_ref()).map(|name| name.0.as_str());
        let known = self.file.connections.value.as_ref().map_or(&[][..], |map| &map.entries);
        let entry = known.iter().find(|entry| name.is_none_or(|name| name == entry.name));
        let kafka = entry.and_then(|entry| entry.value.as_ref()?.kafka.value.as_ref());
        let properties = kafka.and_then(|kafka| kafka.properties.value.as_ref());
        let property = properties.and_then(|map| map.entries.iter().find(|entry| entry.name == "max.poll.interval.ms"));
        let written = property.and_then(|property| property.value.as_ref()?.0.parse().ok());
        (written.unwrap_or(POLL_INTERVAL_DEFAULT), entry.map_or_else(String::new, |entry| entry.name.clone()))
    }

    /// What tells clusters apart: connections to the same brokers reach the same topics.
    pub(super) fn cluster(&self, connection: &str) -> String {
        let known = self.file.connections.value.as_ref().map_or(&[][..], |map| &map.entries);
        let entry = known.iter().find(|entry| entry.name == connection);
        let kafka = entry.and_then(|entry| entry.value.as_ref()?.kafka.value.as_ref());
        let Some(items) = kafka.and_then(|kafka| kafka.brokers.value.as_ref()) else { return connection.to_owned() };
        let mut brokers: Vec<_> = items.iter().flat_map(|item| item.value.0.split(',').map(str::trim)).collect();
        brokers.sort_unstable();
        brokers.dedup();
        brokers.join(",")
    }
}
