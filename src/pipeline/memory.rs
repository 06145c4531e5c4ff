//! Chains whose topics are in memory instead of on their brokers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::topology::topics_on;
use crate::broker::memory::MemoryBroker;
use crate::broker::{BrokerError, BrokerErrorKind};
use crate::spec::{ChainSpec, ConnectionSpec, Guarantee, TargetSpec};

/// Creates the topics that are listed and missing, and makes sure that all others exist.
///
/// # Errors
/// All at once: topics that neither exist nor are listed, and what is not in memory.
pub(super) fn prepare(memory: &MemoryBroker, chains: &[ChainSpec]) -> Result<(), Vec<BrokerError>> {
    let mut errors = missing_here(chains);
    for chain in chains {
        for (name, _) in chain.connections.iter().filter(|(_, connection)| connection.kafka().is_some()) {
            let (create, used) = topics_on(chain, name);
            match memory.prepare(&create, &used) {
                Ok(created) if created.is_empty() => {}
                Ok(created) => tracing::info!(topics = created.join(", "), "created missing topics in memory"),
                Err(more) => errors.extend(more),
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What these chains have that cannot be in memory.
fn missing_here(chains: &[ChainSpec]) -> Vec<BrokerError> {
    let mut errors = Vec::new();
    let mut clusters: BTreeMap<&str, &[String]> = BTreeMap::new();
    for chain in chains {
        for pipeline in &chain.pipelines {
            let targets = pipeline.targets().map(TargetSpec::connection);
            let mut connections = targets.chain([pipeline.source.connection()]);
            if connections.any(|name| matches!(chain.connections.get(name), Some(ConnectionSpec::Nats(_)))) {
                errors.push(not_in_memory("NATS", &pipeline.name));
            }
            if pipeline.guarantee == Guarantee::ExactlyOnce {
                errors.push(not_in_memory("`delivery: exactly_once`", &pipeline.name));
            }
        }
        for (connection, topic) in chain.used_topics() {
            let Some(ConnectionSpec::Kafka(kafka)) = chain.connections.get(connection) else { continue };
            // There is one broker in memory for all clusters: two topics would be one.
            let cluster = *clusters.entry(topic).or_insert(&kafka.brokers);
            if cluster != kafka.brokers.as_slice() {
                let reason = format!("it is on two clusters, {} and {}", cluster.join(", "), kafka.brokers.join(", "));
                let action = format!("have topic {topic} in memory");
                errors.push(BrokerError { kind: BrokerErrorKind::Settings, action, reason });
            }
        }
    }
    errors
}

/// What a pipeline has that is not in memory yet.
pub(super) fn not_in_memory(what: &str, pipeline: &str) -> BrokerError {
    BrokerError {
        kind: BrokerErrorKind::Settings,
        action: format!("run pipeline {pipeline} in memory"),
        reason: format!("{what} is not in memory yet"),
    }
}

/// Waits until a topic is there, which is looked for so often. Cancel-safe.
pub(super) async fn come_back(memory: &MemoryBroker, target: &TargetSpec, pause: Duration) {
    while !memory.has(target.place()) {
        tokio::time::sleep(pause).await;
    }
}
