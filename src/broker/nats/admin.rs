//! Streams: looks whether those that a chain uses are there, and creates those that are listed and missing.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context, ErrorCode};
use futures_util::TryStreamExt as _;

use super::connection::Connection;
use super::failed;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{Discard, NatsConnection, Retention, Storage, StreamSpec, subjects_meet};

/// What this client calls itself.
const CLIENT: &str = "fluxmill-admin";
/// The oldest server whose durable consumers can be set back: see `consumer`.
const OLDEST: (i64, i64, i64) = (2, 14, 0);

/// What a chain uses on one connection.
#[derive(Clone, Debug, Default)]
pub struct Used<'a> {
    /// Streams that are read.
    pub streams: Vec<&'a str>,
    /// Subjects that are published to, `{key}` stands for one token; and whether in atomic batches.
    pub subjects: Vec<(&'a str, bool)>,
}

/// Creates the listed streams that are missing. Returns their names.
///
/// A listed stream that exists with other settings is left as it is, with a warning.
///
/// # Errors
/// All at once: every stream that neither exists nor is listed, every subject that no stream takes, every stream that
/// could not be created; or that the server was not reached within `timeout`.
pub async fn prepare(
    connection: &NatsConnection,
    create: &[&StreamSpec],
    used: &Used<'_>,
    timeout: Duration,
) -> Result<Vec<String>, Vec<BrokerError>> {
    within(connection, timeout, Box::pin(look(connection, create, used, true))).await
}

/// Looks whether [`prepare`] would succeed, and creates nothing. Returns the names of streams that it would create.
///
/// # Errors
/// As [`prepare`].
pub async fn check(
    connection: &NatsConnection,
    create: &[&StreamSpec],
    used: &Used<'_>,
    timeout: Duration,
) -> Result<Vec<String>, Vec<BrokerError>> {
    within(connection, timeout, Box::pin(look(connection, create, used, false))).await
}

async fn within<T>(
    connection: &NatsConnection,
    timeout: Duration,
    work: impl Future<Output = Result<T, Vec<BrokerError>>>,
) -> Result<T, Vec<BrokerError>> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => {
            let action = format!("ask {} for its streams", super::address(connection));
            let reason = format!("no answer within {} s", timeout.as_secs());
            Err(vec![failed(BrokerErrorKind::Unreachable, action, reason)])
        }
    }
}

async fn look(
    connection: &NatsConnection,
    create: &[&StreamSpec],
    used: &Used<'_>,
    may_create: bool,
) -> Result<Vec<String>, Vec<BrokerError>> {
    let connection = Connection::open(connection, CLIENT, false).await.map_err(|error| vec![error])?;
    let context = jetstream::new(connection.client.clone());
    let mut look = Look { connection: &connection, context, used, errors: Vec::new() };
    look.versions();
    let new = look.listed(create, may_create).await;
    look.read(create).await;
    look.written(&new).await;
    if look.errors.is_empty() { Ok(new.into_iter().map(|spec| spec.name.clone()).collect()) } else { Err(look.errors) }
}

/// A look at a server, and what is wrong with it.
struct Look<'a> {
    connection: &'a Connection,
    context: Context,
    used: &'a Used<'a>,
    errors: Vec<BrokerError>,
}

impl Look<'_> {
    fn wrong(&mut self, kind: BrokerErrorKind, action: String, reason: impl std::fmt::Display) {
        self.errors.push(failed(kind, action, reason));
    }

    /// An answer that failed: it may not have come since it was not permitted.
    fn unanswered(&mut self, error: BrokerError) {
        self.errors.push(self.connection.refusal(|| error.action.clone()).unwrap_or(error));
    }

    /// Whether the server is new enough.
    fn versions(&mut self) {
        let (client, address) = (&self.connection.client, &self.connection.address);
        if !self.used.streams.is_empty() && !client.is_server_compatible(OLDEST.0, OLDEST.1, OLDEST.2) {
            let reason = format!(
                "it is version {}; reading needs 2.14 or newer, whose durable consumers can be set back to what is confirmed",
                client.server_info().version
            );
            self.wrong(BrokerErrorKind::Settings, format!("read from {address}"), reason);
        }
        if self.used.subjects.iter().any(|(_, atomic)| *atomic)
            && let Some(reason) = self.connection.knows_no_batches()
        {
            self.wrong(BrokerErrorKind::Settings, format!("publish atomic batches to {address}"), reason);
        }
    }

    /// Looks for the streams that are listed, and creates those that are missing, if it may. Returns these.
    async fn listed<'s>(&mut self, create: &[&'s StreamSpec], may_create: bool) -> Vec<&'s StreamSpec> {
        let address = &self.connection.address;
        let mut new = Vec::new();
        for spec in create {
            match find(&self.context, &spec.name, address).await {
                Ok(Some(config)) => compare(spec, &config),
                Ok(None) if self.create(spec, may_create).await => new.push(*spec),
                Ok(None) => {}
                Err(error) => self.unanswered(error),
            }
        }
        new
    }

    /// Creates a stream that is missing, if it may. Whether it is there now, or would be.
    async fn create(&mut self, spec: &StreamSpec, may_create: bool) -> bool {
        let made = if may_create { Some(make(&self.context, spec, &self.connection.address).await) } else { None };
        if let Some(Ok(())) = made {
            return true;
        }
        // Why the server does not, if it does not, or would not.
        match (self.takes_its_place(spec).await, made) {
            (Ok(Some(other)), _) => tracing::info!(
                target: "fluxmill::nats",
                "stream {} is not created: {} stores {} already, with {} replicas",
                spec.name, other.name, spec.subjects.join(", "), other.num_replicas
            ),
            (Ok(None), Some(Err(error))) => self.errors.push(error),
            (Ok(None), _) => return true,
            (Err(told), Some(Err(error))) if told.kind != BrokerErrorKind::Settings => self.errors.push(error),
            (Err(told), _) => self.unanswered(told),
        }
        false
    }

    /// The stream that stores already what one that is missing would, where that does as well.
    ///
    /// # Errors
    /// When it does not: a subject is in one stream.
    async fn takes_its_place(&self, spec: &StreamSpec) -> Result<Option<Config>, BrokerError> {
        let address = &self.connection.address;
        let action = || format!("create stream {} on {address}", spec.name);
        for subject in &spec.subjects {
            let taken = takers(&self.context, subject).await;
            let taken = taken.map_err(|reason| failed(BrokerErrorKind::Fatal, action(), reason))?;
            let Some(other) = taken.into_iter().next() else { continue };
            if spec.implied && !self.used.streams.contains(&spec.name.as_str()) {
                return Ok(Some(other));
            }
            let name = other.name;
            let help = if spec.implied {
                format!("read it as `nats: {{ stream: {name}, subjects: [\"{subject}\"] }}`, not as a topic")
            } else {
                format!("use {name}, or give {} other subjects", spec.name)
            };
            let reason = format!("stream {name} stores {subject} already, and a subject is in one stream: {help}");
            return Err(failed(BrokerErrorKind::Settings, action(), reason));
        }
        Ok(None)
    }

    /// Looks for the streams that are read and not listed.
    async fn read(&mut self, listed: &[&StreamSpec]) {
        let (used, address) = (self.used, &self.connection.address);
        for name in used.streams.iter().filter(|name| listed.iter().all(|spec| spec.name != **name)) {
            match find(&self.context, name, address).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    let reason = format!("it does not exist on {address}; create it, or list it under `streams:`");
                    self.wrong(BrokerErrorKind::UnknownTopic, format!("find stream {name}"), reason);
                }
                Err(error) => self.unanswered(error),
            }
        }
    }

    /// Looks for who stores what is written, but for the streams that are new: those that were there may have other
    /// subjects than are listed.
    async fn written(&mut self, new: &[&StreamSpec]) {
        let (used, address) = (self.used, &self.connection.address);
        for (subject, atomic) in &used.subjects {
            if new.iter().any(|spec| stores(&spec.subjects, subject)) {
                continue;
            }
            match takers(&self.context, &subject.replace("{key}", "*")).await {
                Ok(streams) if !streams.is_empty() => {
                    self.errors.extend(atomic.then(|| no_batches(subject, &streams)).flatten());
                }
                Ok(_) => {
                    let reason = format!("no stream on {address} stores it; create one, or list it under `streams:`");
                    self.wrong(BrokerErrorKind::UnknownTopic, format!("find subject {subject}"), reason);
                }
                Err(reason) => {
                    let action = format!("find the stream of subject {subject} on {address}");
                    self.unanswered(failed(BrokerErrorKind::Fatal, action, reason));
                }
            }
        }
    }
}

/// A stream's settings, if it is there.
async fn find(context: &Context, name: &str, address: &str) -> Result<Option<Config>, BrokerError> {
    let action = || format!("find stream {name} on {address}");
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            GetStreamErrorKind::JetStream(told) => Err(failed(BrokerErrorKind::Fatal, action(), told)),
            _ => Err(failed(BrokerErrorKind::Unreachable, action(), error)),
        },
    }
}

/// The streams that store some of this subject.
async fn takers(context: &Context, subject: &str) -> Result<Vec<Config>, String> {
    use async_nats::jetstream::context::{GetStreamByNameErrorKind as Missing, GetStreamErrorKind as Gone};
    if !subject.contains(['*', '>']) {
        let name = match context.stream_by_subject(subject).await {
            Ok(name) => name,
            Err(error) if error.kind() == Missing::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.to_string()),
        };
        return match context.get_stream(name).await {
            Ok(stream) => Ok(vec![stream.cached_info().config.clone()]),
            // Deleted just now.
            Err(error) if matches!(error.kind(), Gone::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND) => {
                Ok(Vec::new())
            }
            Err(error) => Err(error.to_string()),
        };
    }
    let (mut streams, mut takers) = (context.streams(), Vec::new());
    while let Some(stream) = streams.try_next().await.map_err(|error| error.to_string())? {
        if stores(&stream.config.subjects, subject) {
            takers.push(stream.config);
        }
    }
    takers.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(takers)
}

/// Whether some of a subject is stored by whoever stores these.
fn stores(stored: &[String], subject: &str) -> bool {
    stored.iter().any(|stored| subjects_meet(stored, subject))
}

/// Why these streams, which store a subject, cannot be given atomic batches for it, if they cannot.
fn no_batches(subject: &str, streams: &[Config]) -> Option<BrokerError> {
    let action = format!("publish atomic batches to subject {subject}");
    let reason = match streams {
        [one, other, ..] => {
            format!("a batch is within one stream, but {} and {} store some of its subjects", one.name, other.name)
        }
        [one] if !one.allow_atomic_publish => format!(
            "stream {} takes none: set its `allow_atomic` (`nats stream edit {} --allow-batch`), or write `atomic: false`",
            one.name, one.name
        ),
        _ => return None,
    };
    Some(failed(BrokerErrorKind::Settings, action, reason))
}

async fn make(context: &Context, spec: &StreamSpec, address: &str) -> Result<(), BrokerError> {
    let action = format!("create stream {} on {address}", spec.name);
    match context.create_stream(config(spec)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::TimedOut => failed(BrokerErrorKind::Unreachable, action, error),
            CreateStreamErrorKind::JetStream(told) => failed(BrokerErrorKind::Settings, action, told),
            _ => failed(BrokerErrorKind::Fatal, action, error),
        }),
    }
}

fn config(spec: &StreamSpec) -> Config {
    let bound = |bound: Option<u64>| bound.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX));
    Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        storage: match spec.storage {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        num_replicas: spec.replicas,
        duplicate_window: spec.duplicate_window,
        retention: match spec.retention {
            Retention::Limits => RetentionPolicy::Limits,
            Retention::Interest => RetentionPolicy::Interest,
            Retention::WorkQueue => RetentionPolicy::WorkQueue,
        },
        discard: match spec.discard {
            Discard::Old => DiscardPolicy::Old,
            Discard::New => DiscardPolicy::New,
        },
        max_age: spec.max_age.unwrap_or_default(),
        max_bytes: bound(spec.max_bytes),
        max_messages: bound(spec.max_messages),
        max_messages_per_subject: -1,
        max_message_size: spec.max_message_bytes.map_or(-1, |most| i32::try_from(most).unwrap_or(i32::MAX)),
        allow_direct: true,
        allow_atomic_publish: spec.atomic,
        ..Config::default()
    }
}

/// A stream that exists stays as it is; what the file says otherwise is told.
fn compare(spec: &StreamSpec, found: &Config) {
    let wanted = config(spec);
    let mut others = Vec::new();
    let mut differs = |what: &str, is: String, listed: String| {
        if is != listed {
            others.push(format!("{what} {is}, not {listed}"));
        }
    };
    differs("subjects", found.subjects.join(", "), wanted.subjects.join(", "));
    differs("storage", format!("{:?}", found.storage), format!("{:?}", wanted.storage));
    differs("replicas", found.num_replicas.to_string(), wanted.num_replicas.to_string());
    differs("duplicate window", format!("{:?}", found.duplicate_window), format!("{:?}", wanted.duplicate_window));
    differs("retention", format!("{:?}", found.retention), format!("{:?}", wanted.retention));
    differs("atomic", found.allow_atomic_publish.to_string(), wanted.allow_atomic_publish.to_string());
    if !others.is_empty() {
        tracing::warn!(
            target: "fluxmill::nats",
            "stream {} is not as listed, and is used as it is: {}", spec.name, others.join("; ")
        );
    }
}
