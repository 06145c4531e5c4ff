//! What `delivery: exactly_once` asks of a pipeline's connections. Pure.

use std::collections::BTreeMap;

use crate::config::error::{Kind, Mistake, Span};
use crate::config::show_duration;
use crate::spec::{ColumnarSettings, ConnectionSpec, Guarantee, KafkaClient, LastResort, PipelineSpec, TargetSpec};

/// What a pipeline's `commit` asks for that its guarantee does not have. `max_events` is the place of that.
pub(super) fn check_commit(pipeline: &PipelineSpec, max_events: &Span) -> Option<Mistake> {
    if pipeline.guarantee == Guarantee::ExactlyOnce || pipeline.commit.max_events.is_none() {
        return None;
    }
    let message = "`max_events` is for transactions, and `delivery: at_least_once` has none".to_owned();
    let help = "delete it, or write `delivery: exactly_once`; `interval` works with both";
    Some(Mistake::at(Kind::ExactlyOnce, max_events.clone(), message).help(help))
}

/// Lets no transaction be filled for longer than leaves time for its events. `place` is that of `interval`.
pub(super) fn bound_interval(
    pipeline: &PipelineSpec,
    connections: &BTreeMap<String, ConnectionSpec>,
    place: &Span,
) -> Option<Mistake> {
    let settings = settings(pipeline, connections)?;
    let (written, most) = (pipeline.commit.interval, settings.transaction_interval_max());
    if written <= most {
        return None;
    }
    let (written, most, whole) = (show_duration(written), show_duration(most), settings.transaction_timeout);
    let message =
        format!("`interval: {written}` is more than a quarter of `transaction.timeout.ms`, {}", show_duration(whole));
    let help = format!("the broker ends a transaction that is older: write `interval: {most}` or less");
    Some(Mistake::at(Kind::ExactlyOnce, place.clone(), message).help(help))
}

/// What the columnar client is set to that has a pipeline's transactions; none where there are none.
fn settings<'a>(
    pipeline: &PipelineSpec,
    connections: &'a BTreeMap<String, ConnectionSpec>,
) -> Option<&'a ColumnarSettings> {
    match &connections.get(pipeline.source.connection())?.kafka()?.client {
        KafkaClient::Columnar(settings) if pipeline.guarantee == Guarantee::ExactlyOnce => Some(settings),
        KafkaClient::Columnar(_) | KafkaClient::Librdkafka => None,
    }
}

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
    let home = pipeline.source.connection();
    let mut mistakes = Vec::new();
    if pipeline.source.kafka().is_none() {
        let message = "`delivery: exactly_once` needs Kafka on both sides, but events come from NATS".to_owned();
        let help = "write `delivery: at_least_once`: with a `duplicate_window` that covers the longest outage, what NATS \
                    stores is effectively once";
        return vec![mistake(message).help(help)];
    }
    let dead = match &pipeline.on_error.then {
        LastResort::DeadLetter(target) => Some(("dead letters go".to_owned(), target)),
        LastResort::Stop | LastResort::Drop => None,
    };
    let outputs = pipeline.outputs.iter().map(|output| (format!("output `{}` goes", output.name), &output.target));
    for (what, target) in outputs.chain(dead) {
        let connection = target.connection();
        if !matches!(target, TargetSpec::Kafka { .. }) {
            let message = format!("`delivery: exactly_once` needs Kafka on both sides, but {what} to NATS");
            mistakes.push(mistake(message).help("send it to Kafka, or write `delivery: at_least_once`"));
        } else if connection != home {
            let message = format!("events come from connection `{home}`, but {what} to `{connection}`");
            let help = format!("a transaction cannot span two clusters: use `{home}` there too, {or}");
            mistakes.push(mistake(message).help(help));
        }
    }
    let Some(connection) = connections.get(home).and_then(ConnectionSpec::kafka) else { return mistakes };
    if connection.client == KafkaClient::Librdkafka {
        let message = format!("connection `{home}` has `client: librdkafka`, which has no transactions here");
        mistakes.push(mistake(message).help(format!("write `client: columnar` there, {or}")));
    }
    mistakes
}

/// Lets no event be run again for longer than its transaction allows. `place` is that of `max_age`.
pub(super) fn bound_age(
    pipeline: &mut PipelineSpec,
    connections: &BTreeMap<String, ConnectionSpec>,
    place: &Span,
) -> Option<Mistake> {
    let settings = settings(pipeline, connections)?;
    let home = pipeline.source.connection().to_owned();
    let most = settings.transaction_age_max();
    let written = *pipeline.on_error.retry.max_age.get_or_insert(most);
    if written <= most {
        return None;
    }
    let (written, half, whole) = (show_duration(written), show_duration(most), settings.transaction_timeout);
    let message =
        format!("`max_age: {written}` is more than half of `transaction.timeout.ms`, {}", show_duration(whole));
    let enough = pipeline.on_error.retry.max_age.unwrap_or_default().as_millis() * 2;
    let help = format!(
        "the broker ends a transaction that is older, and its events would begin again: write `max_age: {half}` or \
         less, or `transaction.timeout.ms: \"{enough}\"` in the `properties` of `{home}`"
    );
    Some(Mistake::at(Kind::ExactlyOnce, place.clone(), message).help(help))
}
