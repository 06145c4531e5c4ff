//! Topics, before anything runs: which exist, which are created, which are missing.
//!
//! librdkafka answers questions for metadata only to a thread that waits. So these futures block theirs, for at most
//! a second at a time; between, other tasks get their turn. They are for the start, when nothing runs yet.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use super::client::{Consumer, Notes, Reach, TopicState, topic_state};
use super::{address, error, observer, wire};
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{KafkaClient, KafkaConnection, TopicSpec};

/// What these clients call themselves at the broker.
const CLIENT_ID: &str = "fluxmill-admin";
/// How much later than librdkafka itself to give an admin call up.
const ANSWER_GRACE: Duration = Duration::from_secs(1);
/// librdkafka's bound of a record batch, in bytes, and its default.
const BATCH_SIZE: &str = "batch.size";
const BATCH_SIZE_DEFAULT: u64 = 1_000_000;
/// How often new topics are asked for until they have leaders.
const LEADER_PAUSE: Duration = Duration::from_millis(50);

/// Creates the listed topics that are missing, and waits until they have leaders. Returns their names.
///
/// A listed topic that exists with another number of partitions is left as it is, with a warning.
///
/// # Errors
/// All at once: every used topic that neither exists nor is listed, every topic that could not be created; or that
/// the cluster was not reached within `timeout`.
pub async fn prepare(
    connection: &KafkaConnection,
    create: &[&TopicSpec],
    used: &[&str],
    timeout: Duration,
) -> Result<Vec<String>, Vec<BrokerError>> {
    let deadline = Instant::now() + timeout;
    let (consumer, missing) = look(connection, create, used, deadline).await?;
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    make(connection, &missing, deadline).await?;
    wait_for_leaders(&consumer, &address(connection), &missing, deadline).await?;
    Ok(missing.iter().map(|topic| topic.topic.clone()).collect())
}

/// Looks whether [`prepare`] would succeed, and creates nothing. Returns the names of topics that it would create.
///
/// # Errors
/// All at once: every used topic that neither exists nor is listed; or that the cluster was not reached within
/// `timeout`.
pub async fn check(
    connection: &KafkaConnection,
    create: &[&TopicSpec],
    used: &[&str],
    timeout: Duration,
) -> Result<Vec<String>, Vec<BrokerError>> {
    let (_, missing) = look(connection, create, used, Instant::now() + timeout).await?;
    Ok(missing.iter().map(|topic| topic.topic.clone()).collect())
}

/// The listed topics that are missing.
async fn look<'a>(
    connection: &KafkaConnection,
    create: &[&'a TopicSpec],
    used: &[&str],
    deadline: Instant,
) -> Result<(Consumer, Vec<&'a TopicSpec>), Vec<BrokerError>> {
    let obstacle = obstacle(connection, deadline).await?;
    let address = address(connection);
    let consumer = Notes::consumer(&observer(connection, CLIENT_ID), CLIENT_ID)
        .map_err(|error| vec![error::failed(format!("connect to {address}"), &error)])?;
    let mut names: Vec<&str> = create.iter().map(|topic| topic.topic.as_str()).chain(used.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let mut reach = Reach::new(&consumer, &address, &names, deadline);
    let states = loop {
        if let Some(states) = reach.attempt().map_err(|error| vec![better(error, obstacle.as_ref())])? {
            break states;
        }
        tokio::task::yield_now().await;
    };
    drop(reach);
    let (mut missing, mut errors) = (Vec::new(), Vec::new());
    for state in &states {
        let listed = create.iter().find(|topic| topic.topic == state.name);
        match (state.error, listed) {
            (None, Some(topic)) => compare(topic, state),
            (None, None) => {}
            (Some(RDKafkaErrorCode::UnknownTopicOrPartition), Some(topic)) => missing.push(*topic),
            (Some(RDKafkaErrorCode::UnknownTopicOrPartition), None) => errors.push(BrokerError {
                kind: BrokerErrorKind::UnknownTopic,
                action: format!("find topic {}", state.name),
                reason: format!("it does not exist on {address}; create it, or list it under `topics:`"),
            }),
            (Some(RDKafkaErrorCode::LeaderNotAvailable), _) => {}
            (Some(code), _) => errors.push(error::coded(format!("find topic {} on {address}", state.name), code, "")),
        }
    }
    if errors.is_empty() { Ok((consumer, missing)) } else { Err(errors) }
}

/// What is in the way of the columnar client, which knows its own connections best: librdkafka's words name settings
/// that nobody wrote, or say nothing at all. None when nothing is, or when that was not found out in time.
///
/// # Errors
/// What will not pass.
async fn obstacle(connection: &KafkaConnection, deadline: Instant) -> Result<Option<BrokerError>, Vec<BrokerError>> {
    let KafkaClient::Columnar(settings) = &connection.client else { return Ok(None) };
    let half = deadline.saturating_duration_since(Instant::now()) / 2;
    match tokio::time::timeout(half, wire::try_out(connection, settings, CLIENT_ID)).await {
        Ok(Err(error)) if error.kind != BrokerErrorKind::Unreachable => Err(vec![error]),
        tried => Ok(tried.ok().and_then(Result::err)),
    }
}

/// The error of librdkafka, unless it is that nothing was reached and the columnar client said why.
fn better(error: BrokerError, obstacle: Option<&BrokerError>) -> BrokerError {
    match obstacle {
        Some(obstacle) if error.kind == BrokerErrorKind::Unreachable => obstacle.clone(),
        _ => error,
    }
}

/// A topic that exists stays as it is; what the file says otherwise is told.
fn compare(topic: &TopicSpec, state: &TopicState) {
    if state.partitions != topic.partitions {
        tracing::warn!(
            target: "fluxmill::kafka",
            "topic {} has {} partitions, not {} as listed; it is used as it is",
            topic.topic,
            state.partitions,
            topic.partitions
        );
    }
}

async fn make(connection: &KafkaConnection, missing: &[&TopicSpec], deadline: Instant) -> Result<(), Vec<BrokerError>> {
    let action = format!("create topics on {}", address(connection));
    let admin: AdminClient<Notes> = Notes::admin(&observer(connection, CLIENT_ID), CLIENT_ID)
        .map_err(|error| vec![error::failed(&action, &error)])?;
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            // -1 leaves it to the broker.
            let replication = TopicReplication::Fixed(topic.replication.unwrap_or(-1));
            let new = NewTopic::new(&topic.topic, topic.partitions, replication);
            topic.settings.iter().fold(new, |new, (name, value)| new.set(name, value))
        })
        .collect();
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let options = AdminOptions::new().request_timeout(Some(left)).operation_timeout(Some(left));
    let answer = match tokio::time::timeout(left + ANSWER_GRACE, admin.create_topics(&topics, &options)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(vec![error::failed(action, &error)]),
        Err(_) => return Err(vec![error::coded(action, RDKafkaErrorCode::OperationTimedOut, "")]),
    };
    let errors: Vec<BrokerError> = answer
        .into_iter()
        .filter_map(Result::err)
        // Another process was faster.
        .filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists)
        .map(|(name, code)| error::coded(format!("create topic {name} on {}", address(connection)), code, ""))
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

async fn wait_for_leaders(
    consumer: &Consumer,
    address: &str,
    topics: &[&TopicSpec],
    deadline: Instant,
) -> Result<(), Vec<BrokerError>> {
    for topic in topics {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            // What fails here fails again until the deadline, and is told then.
            let state = topic_state(consumer, &topic.topic, left.min(Duration::from_secs(1)));
            if state.as_ref().is_ok_and(|state| state.error.is_none() && state.led) {
                break;
            }
            if Instant::now() >= deadline {
                let (kind, action) =
                    (BrokerErrorKind::Unreachable, format!("create topic {} on {address}", topic.topic));
                return Err(vec![BrokerError { kind, action, reason: "it has no leader yet".into() }]);
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }
    Ok(())
}

/// The connection, with record batches small enough for the topic among these that takes the least.
///
/// Both clients fill record batches up to `batch.size`, 1 MB by default. A topic whose `max.message.bytes` is below
/// refuses a whole batch, small events and all. A `batch.size` among the connection's properties is left alone; so is
/// everything where the broker does not tell its topics' settings.
pub async fn with_fitting_batches(connection: &KafkaConnection, topics: &[&str], timeout: Duration) -> KafkaConnection {
    let mut fitting = connection.clone();
    if fitting.properties.contains_key(BATCH_SIZE) {
        return fitting;
    }
    match smallest_limit(connection, topics, timeout).await {
        Ok(Some(limit)) if limit < BATCH_SIZE_DEFAULT => {
            // What the broker adds to a batch when it assigns offsets stays within this.
            let size = (limit - limit / 20).max(1);
            fitting.properties.insert(BATCH_SIZE.into(), size.to_string());
            if let KafkaClient::Columnar(settings) = &mut fitting.client {
                settings.batch_bytes = usize::try_from(size).unwrap_or(usize::MAX);
            }
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(target: "fluxmill::kafka", "{error}; record batches keep their default size"),
    }
    fitting
}

/// The smallest `max.message.bytes` of these topics, in bytes.
async fn smallest_limit(
    connection: &KafkaConnection,
    topics: &[&str],
    timeout: Duration,
) -> Result<Option<u64>, BrokerError> {
    let action = || format!("ask {} for the settings of topics", address(connection));
    let failed = |error| error::failed(action(), &error);
    let admin: AdminClient<Notes> = Notes::admin(&observer(connection, CLIENT_ID), CLIENT_ID).map_err(failed)?;
    let resources: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let answer = match tokio::time::timeout(timeout + ANSWER_GRACE, admin.describe_configs(&resources, &options)).await
    {
        Ok(answer) => answer.map_err(failed)?,
        Err(_) => return Err(error::coded(action(), RDKafkaErrorCode::OperationTimedOut, "")),
    };
    let limits =
        answer.iter().flatten().filter_map(|topic| topic.get("max.message.bytes")?.value.as_ref()?.parse().ok());
    Ok(limits.min())
}
