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
    let (address, mut errors, mut made) = (&connection.address, Vec::new(), Vec::new());
    if !used.streams.is_empty() && !connection.client.is_server_compatible(OLDEST.0, OLDEST.1, OLDEST.2) {
        let reason = format!(
            "it is version {}; reading needs 2.14 or newer, whose durable consumers can be set back to what is confirmed",
            connection.client.server_info().version
        );
        errors.push(failed(BrokerErrorKind::Settings, format!("read from {address}"), reason));
    }
    if used.subjects.iter().any(|(_, atomic)| *atomic)
        && let Some(reason) = connection.knows_no_batches()
    {
        errors.push(failed(BrokerErrorKind::Settings, format!("publish atomic batches to {address}"), reason));
    }
    let mut new = Vec::new();
    for spec in create {
        match find(&context, &spec.name, address).await {
            Ok(Some(config)) => compare(spec, &config),
            Ok(None) => {
                new.push(spec);
                match if may_create { make(&context, spec, address).await } else { Ok(()) } {
                    Ok(()) => made.push(spec.name.clone()),
                    Err(error) => errors.push(error),
                }
            }
            Err(error) => errors.push(connection.refusal(|| error.action.clone()).unwrap_or(error)),
        }
    }
    for name in &used.streams {
        if create.iter().any(|spec| spec.name == *name) {
            continue;
        }
        match find(&context, name, address).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                let reason = format!("it does not exist on {address}; create it, or list it under `streams:`");
                errors.push(failed(BrokerErrorKind::UnknownTopic, format!("find stream {name}"), reason));
            }
            Err(error) => errors.push(connection.refusal(|| error.action.clone()).unwrap_or(error)),
        }
    }
    for (subject, atomic) in &used.subjects {
        // One that was there may have other subjects than those that are listed.
        if new.iter().any(|spec| stores(&spec.subjects, subject)) {
            continue;
        }
        match takers(&context, &subject.replace("{key}", "*")).await {
            Ok(streams) if !streams.is_empty() => {
                errors.extend(atomic.then(|| no_batches(subject, &streams)).flatten());
            }
            Ok(_) => {
                let reason = format!("no stream on {address} stores it; create one, or list it under `streams:`");
                errors.push(failed(BrokerErrorKind::UnknownTopic, format!("find subject {subject}"), reason));
            }
            Err(reason) => {
                let action = format!("find the stream of subject {subject} on {address}");
                errors.push(connection.refusal(|| action.clone()).unwrap_or(failed(
                    BrokerErrorKind::Fatal,
                    action,
                    reason,
                )));
            }
        }
    }
    if errors.is_empty() { Ok(made) } else { Err(errors) }
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
    if !subject.contains('*') {
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
