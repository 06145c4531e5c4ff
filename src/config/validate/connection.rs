//! Connections: addresses, TLS, SASL, properties.

use std::collections::BTreeMap;

use super::broker::{Broker, Either};
use super::properties::Written;
use super::{Validator, columnar, names, properties, texts, together};
use crate::config::error::{Kind, Mistake, Span};
use crate::config::language::{Client, Connection, Kafka, Mechanism, Sasl, Tls};
use crate::config::read::{Field, Named};
use crate::config::scalar::{ConnectionName, PemFile, Text};
use crate::spec::{ConnectionSpec, KafkaClient, KafkaConnection, SaslMechanism, SaslSpec, TlsSpec, TokenSource};

/// How long the broker waits for a consumer when nothing else is said, in milliseconds (librdkafka's default).
pub(crate) const POLL_INTERVAL_DEFAULT: u64 = 300_000;

/// A key, whatever its value is.
struct Place<'f> {
    span: &'f Span,
    is_written: bool,
}

impl<'f> Place<'f> {
    fn of<T>(field: &'f Field<T>) -> Self {
        Self { span: &field.span, is_written: field.is_written() }
    }
}

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
            let Some(connection) = &entry.value else { continue };
            let (of, sample) = (format!("connection `{}`", entry.name), "kafka: { brokers: [\"localhost:9092\"] }");
            let made_of = match self.either(&connection.kafka, &connection.nats, &of, sample) {
                Some(Either::Kafka(kafka)) => self.kafka(kafka).map(ConnectionSpec::Kafka),
                Some(Either::Nats(nats)) => self.nats(nats).map(ConnectionSpec::Nats),
                None => None,
            };
            made.extend(made_of.filter(|_| named).map(|made| (entry.name.clone(), made)));
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
        let tls = kafka.tls.value.as_ref().map(|tls| self.tls(tls));
        let sasl = kafka.sasl.value.as_ref().map(|sasl| self.sasl(sasl));
        let entries = kafka.properties.value.as_ref().map_or(&[][..], |map| &map.entries);
        let client = self.properties(entries, kafka.client.value);
        let sasl = match sasl {
            None => None,
            Some(sasl) => Some(sasl?),
        };
        Some(KafkaConnection { brokers, tls, sasl, client: client?, properties: texts(entries) })
    }

    /// Checks the properties, each by itself and with the others.
    fn properties(&mut self, entries: &[Named<Text>], client: Option<Client>) -> Option<KafkaClient> {
        let written: Vec<_> = entries.iter().filter_map(|entry| properties::read(entry, self.mistakes)).collect();
        self.twice(&written);
        let client = match client? {
            Client::Librdkafka => KafkaClient::Librdkafka,
            Client::Columnar => KafkaClient::Columnar(columnar::settings(&written, self.mistakes)),
        };
        together::check(&written, &client, self.mistakes);
        Some(client)
    }

    /// Two names of one property.
    fn twice(&mut self, written: &[Written<'_>]) {
        for (nth, one) in written.iter().enumerate() {
            let canonical = one.property.canonical();
            if let Some(first) = written[..nth].iter().find(|other| other.property.canonical() == canonical) {
                let message = format!("`{}` and `{}` are one property", first.property.name, one.property.name);
                let mistake = Mistake::at(Kind::DuplicateKey, one.span.clone(), message).label("written again");
                let mistake = mistake.other(first.span.clone(), "written first");
                self.mistakes.push(mistake.help("delete one of them"));
            }
        }
    }

    fn sasl(&mut self, sasl: &Sasl) -> Option<SaslSpec> {
        let mechanism = match sasl.mechanism.value? {
            Mechanism::OauthBearer => return self.token(sasl),
            Mechanism::Plain => SaslMechanism::Plain,
            Mechanism::Scram256 => SaslMechanism::ScramSha256,
            Mechanism::Scram512 => SaslMechanism::ScramSha512,
        };
        let name = mechanism.name();
        for (field, key) in [(Place::of(&sasl.token), "token"), (Place::of(&sasl.token_file), "token_file")] {
            self.out_of_place(field, key, name, "delete it, or write `mechanism: OAUTHBEARER`");
        }
        for (field, key, sample) in [
            (Place::of(&sasl.username), "username", "fluxmill"),
            (Place::of(&sasl.password), "password", "\"${KAFKA_PASSWORD}\""),
        ] {
            if !field.is_written {
                let message = format!("`{name}` needs a `{key}`");
                let mistake = Mistake::at(Kind::MissingKey, field.span.clone(), message).label("in here");
                self.mistakes.push(mistake.help(format!("add `{key}: {sample}`")));
            }
        }
        let (username, password) = (sasl.username.value.as_ref()?, sasl.password.value.as_ref()?);
        Some(SaslSpec::Password { mechanism, username: username.0.clone(), password: password.0.clone() })
    }

    fn token(&mut self, sasl: &Sasl) -> Option<SaslSpec> {
        for (field, key) in [(Place::of(&sasl.username), "username"), (Place::of(&sasl.password), "password")] {
            let help = "delete it: the token says who it is; or write `mechanism: SCRAM-SHA-512`";
            self.out_of_place(field, key, "OAUTHBEARER", help);
        }
        let (token, file) = (&sasl.token, &sasl.token_file);
        match (token.is_written(), file.is_written()) {
            (true, true) => {
                let message = "there are both `token` and `token_file`";
                let mistake = Mistake::at(Kind::SaslKeys, file.span.clone(), message);
                let mistake = mistake.other(token.key.clone().unwrap_or_default(), "and here");
                self.mistakes
                    .push(mistake.help("delete one of them: `token_file` is read again when its token was renewed"));
            }
            (false, false) => {
                let message = "`OAUTHBEARER` needs a token";
                let mistake = Mistake::at(Kind::SaslKeys, sasl.mechanism.span.clone(), message);
                let help = "add `token_file: /run/secrets/kafka-token`, a file that something else keeps fresh, or `token: \"${KAFKA_TOKEN}\"`";
                self.mistakes.push(mistake.help(help));
            }
            _ => {}
        }
        if let Some(path) = &file.value {
            return Some(SaslSpec::Token(TokenSource::File(path.0.clone())));
        }
        let value = token.value.as_ref()?;
        if !names::token(&value.0.0) {
            let message = "the token has characters that no token has";
            let help = "write the token alone, without quotes, spaces or the word `Bearer`";
            self.mistakes.push(Mistake::at(Kind::SecretFile, token.span.clone(), message).help(help));
            return None;
        }
        Some(SaslSpec::Token(TokenSource::Value(value.0.clone())))
    }

    /// A key that does not go with the mechanism.
    fn out_of_place(&mut self, field: Place<'_>, key: &str, mechanism: &str, help: &str) {
        if field.is_written {
            let message = format!("`{mechanism}` takes no `{key}`");
            self.mistakes.push(Mistake::at(Kind::SaslKeys, field.span.clone(), message).help(help));
        }
    }

    pub(super) fn tls(&mut self, tls: &Tls) -> TlsSpec {
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

    /// The connection that is meant, written or not; to this broker, or to any.
    pub(super) fn connection_of(&mut self, field: &Field<ConnectionName>, broker: Option<Broker>) -> Option<String> {
        let all = self.file.connections.value.as_ref().map_or(&[][..], |map| &map.entries);
        // One that does not say it right may be meant.
        let fits = |name: &str| broker.is_none() || self.broker_of(name).is_none_or(|of| Some(of) == broker);
        let known: Vec<_> = all.iter().filter(|entry| fits(&entry.name)).collect();
        let names = || known.iter().map(|entry| entry.name.as_str());
        if let Some(name) = &field.value {
            if names().any(|known| known == name.0) {
                return Some(name.0.clone());
            }
            if let (Some(other), Some(broker)) = (self.broker_of(&name.0), broker) {
                let (other, broker) = (other.name(), broker.name());
                let message = format!("connection `{}` reaches {other}, not {broker}", name.0.escape_debug());
                let help = if known.is_empty() {
                    format!("add a connection to {broker}, or write `{}:` here", other.to_lowercase())
                } else {
                    format!("write {}", crate::config::shape::one_of(names()))
                };
                self.mistakes.push(Mistake::at(Kind::UnknownConnection, field.span.clone(), message).help(help));
                return None;
            }
            // Without any connection that mistake says it all.
            if !known.is_empty() {
                let message = format!("there is no connection `{}`", name.0.escape_debug());
                let help = match crate::config::read::similar(&name.0, names()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("write {}", crate::config::shape::one_of(names())),
                };
                self.mistakes.push(Mistake::at(Kind::UnknownConnection, field.span.clone(), message).help(help));
            }
            return None;
        }
        if field.is_written() {
            return None;
        }
        match (known.as_slice(), broker) {
            // That there are none was said.
            ([], _) if all.is_empty() => None,
            ([], None) => None,
            ([], Some(broker)) => {
                let message = format!("there is no connection to {}", broker.name());
                let help = match broker {
                    Broker::Kafka => "add one: `connections: { main: { kafka: { brokers: [\"localhost:9092\"] } } }`",
                    Broker::Nats => {
                        "add one: `connections: { edge: { nats: { servers: [\"nats://localhost:4222\"] } } }`"
                    }
                };
                self.mistakes.push(Mistake::at(Kind::UnknownConnection, field.span.clone(), message).help(help));
                None
            }
            ([only], _) => Some(only.name.clone()),
            _ => {
                let message = "there are several connections, and none is chosen here";
                let help =
                    format!("add `connection: {}`; there are {}", known[0].name, crate::config::shape::one_of(names()));
                self.mistakes.push(Mistake::at(Kind::WhichConnection, field.span.clone(), message).help(help));
                None
            }
        }
    }

    /// How long the broker waits for a consumer on this connection, in milliseconds.
    pub(super) fn poll_interval(&self, connection: &str) -> u64 {
        let kafka = self.connection(connection).and_then(|connection| connection.kafka.value.as_ref());
        let properties = kafka.and_then(|kafka| kafka.properties.value.as_ref());
        let property = properties.and_then(|map| map.entries.iter().find(|entry| entry.name == "max.poll.interval.ms"));
        let written = property.and_then(|property| property.value.as_ref()?.0.parse().ok());
        written.unwrap_or(POLL_INTERVAL_DEFAULT)
    }

    /// What is written of a connection.
    pub(super) fn connection(&self, name: &str) -> Option<&Connection> {
        let known = self.file.connections.value.as_ref().map_or(&[][..], |map| &map.entries);
        known.iter().find(|entry| entry.name == name)?.value.as_ref()
    }

    /// What tells clusters apart: connections to the same brokers reach the same topics.
    pub(super) fn cluster(&self, connection: &str) -> String {
        let written = self.connection(connection);
        let kafka = written.and_then(|written| written.kafka.value.as_ref()?.brokers.value.as_ref());
        let nats = written.and_then(|written| written.nats.value.as_ref()?.servers.value.as_ref());
        let addresses: Vec<&str> = match (kafka, nats) {
            (Some(brokers), _) => brokers.iter().map(|item| item.value.0.as_str()).collect(),
            (None, Some(servers)) => servers.iter().map(|item| item.value.0.as_str()).collect(),
            (None, None) => return connection.to_owned(),
        };
        let mut brokers: Vec<_> = addresses.iter().flat_map(|text| text.split(',').map(str::trim)).collect();
        brokers.sort_unstable();
        brokers.dedup();
        brokers.join(",")
    }
}
