//! What `delivery: exactly_once` asks of a pipeline's connections. Pure.

use std::collections::BTreeMap;

use crate::config::error::{Kind, Mistake, Span};
use crate::spec::{ConnectionSpec, Guarantee, KafkaClient, LastResort, PipelineSpec, SourceSpec, TargetSpec};

/// Every mistake of a pipeline, told at the place of its `delivery`.
pub(super) fn check(
    pipeline: &PipelineSpec,
    connections: &BTreeMap<String, ConnectionSpec>,
    delivery: &Span,
) -> Vec<Mistake> {
    if pipeline.guarantee != Guarantee::ExactlyOnce {
        return Vec::new();
    }
    let mistake = |message: String| Mistake::at(Kind::ExactlyOnce, delivery.clone(), message);
    let or = "or write `delivery: at_least_once`";
    let SourceSpec::Kafka(source) = &pipeline.source;
    let home = &source.connection;
    let mut mistakes = Vec::new();
    let dead = match &pipeline.on_error.then {
        LastResort::DeadLetter(target) => Some(("dead letters go".to_owned(), target)),
        LastResort::Stop | LastResort::Drop => None,
    };
    let outputs = pipeline.outputs.iter().map(|output| (format!("output `{}` goes", output.name), &output.target));
    for (what, TargetSpec::Kafka { connection, .. }) in outputs.chain(dead) {
        if connection != home {
            let message = format!("events come from connection `{home}`, but {what} to `{connection}`");
            let help = format!("a transaction cannot span two clusters: use `{home}` there too, {or}");
            mistakes.push(mistake(message).help(help));
        }
    }
    let Some(ConnectionSpec::Kafka(connection)) = connections.get(home) else { return mistakes };
    if connection.client == KafkaClient::Librdkafka {
        let message = format!("connection `{home}` has `client: librdkafka`, which has no transactions here");
        mistakes.push(mistake(message).help(format!("write `client: columnar` there, {or}")));
    }
    mistakes
}
