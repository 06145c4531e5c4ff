//! Kafka: inputs and targets.

use super::Validator;
use super::broker::Broker;
use super::names;
use super::wiring::{Place, Role, Wire};
use crate::config::error::{Kind, Mistake, Span};
use crate::config::language::{KafkaInput, KafkaTarget};
use crate::config::read::{Field, Item};
use crate::config::scalar::{GroupName, TopicName};
use crate::spec;

impl Validator<'_> {
    pub(super) fn kafka_source(
        &mut self,
        nth: usize,
        source: &KafkaInput,
        prefix: Option<&str>,
    ) -> Option<spec::SourceSpec> {
        let connection = self.connection_of(&source.connection, Some(Broker::Kafka));
        let group = self.group(&source.group, prefix);
        let instance = source.instance.value.as_ref();
        let instance = instance.filter(|name| self.checked(names::instance(&name.0), &source.instance.span));
        let topics = self.wire_topics(nth, connection.as_deref(), &source.topics, group.as_deref());
        if let (Some(instance), Some(group)) = (instance, &group) {
            self.wiring.members.push((nth, group.clone(), instance.0.clone(), source.instance.span.clone()));
        }
        (!topics.is_empty()).then_some(())?;
        Some(spec::SourceSpec::Kafka(spec::KafkaSourceSpec {
            connection: connection?,
            topics,
            group: group?,
            instance: instance.map(|name| name.0.clone()),
            start: source.start.value?.0,
        }))
    }

    /// The consumer group: as it is written, or chain and pipeline.
    pub(super) fn group(&mut self, written: &Field<GroupName>, prefix: Option<&str>) -> Option<String> {
        match &written.value {
            Some(group) => self.checked(names::group(&group.0), &written.span).then(|| group.0.clone()),
            None if written.is_written() => None,
            None => prefix.map(str::to_owned),
        }
    }

    /// The topics, each once; notes that a pipeline reads them.
    pub(super) fn wire_topics(
        &mut self,
        nth: usize,
        connection: Option<&str>,
        written: &Field<Vec<Item<TopicName>>>,
        group: Option<&str>,
    ) -> Vec<String> {
        let mut topics: Vec<String> = Vec::new();
        for item in written.value.as_deref().unwrap_or(&[]) {
            let topic = &item.value.0;
            if !self.checked(names::topic(topic), &item.span) {
                continue;
            }
            if topics.contains(topic) {
                let message = format!("`{topic}` is listed twice");
                let mistake = Mistake::at(Kind::DuplicateTopic, item.span.clone(), message);
                self.mistakes.push(mistake.help("keep one of them"));
                continue;
            }
            topics.push(topic.clone());
            if let Some(connection) = connection {
                self.place(connection, topic, &item.span);
                let cluster = self.cluster(connection);
                self.wiring.wires.push(Wire {
                    pipeline: nth,
                    role: Role::Input { group: group.map(str::to_owned) },
                    topic: Place { cluster, name: topic.clone(), subjects: None, is_core: false },
                    span: item.span.clone(),
                });
            }
        }
        topics
    }

    pub(super) fn kafka_target(&mut self, nth: usize, target: &KafkaTarget, role: Role) -> Option<spec::TargetSpec> {
        let connection = self.connection_of(&target.connection, Some(Broker::Kafka));
        let topic = &target.topic.value.as_ref()?.0;
        self.kafka_topic(nth, connection, topic, &target.topic.span, role)
    }

    /// A topic to write to.
    pub(super) fn kafka_topic(
        &mut self,
        nth: usize,
        connection: Option<String>,
        topic: &str,
        span: &Span,
        role: Role,
    ) -> Option<spec::TargetSpec> {
        if !self.checked(names::topic(topic).and_then(|()| names::writable(topic)), span) {
            return None;
        }
        let connection = connection?;
        self.place(&connection, topic, span);
        let place =
            Place { cluster: self.cluster(&connection), name: topic.to_owned(), subjects: None, is_core: false };
        self.wiring.wires.push(Wire { pipeline: nth, role, topic: place, span: span.clone() });
        Some(spec::TargetSpec::Kafka { connection, topic: topic.to_owned() })
    }
}
