//! Where pipelines begin and end: by what only one broker has, or by topics, which are of the broker that the connection
//! reaches. A file of topics runs on another broker when its connection is changed, and nothing else.

use super::broker::Broker;
use super::wiring::Role;
use super::{Validator, names, texts};
use crate::config::error::{Kind, Mistake, Span};
use crate::config::language::{Input, Pipeline, Target, Topic, TopicsAre};
use crate::config::read::{Field, Named};
use crate::spec::{self, CoreNatsSourceSpec, NatsKey, NatsSourceSpec, StreamSpec, without_dots};

/// Copies of a stream at most.
const REPLICAS_MAX: u64 = 5;

/// What a topic is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TopicOf {
    Kafka,
    /// A stream of NATS and the subject that it stores.
    Stream,
    /// A subject of core NATS.
    Core,
}

impl Validator<'_> {
    pub(super) fn source(&mut self, nth: usize, pipeline: &Pipeline, prefix: Option<&str>) -> Option<spec::SourceSpec> {
        let from = pipeline.from.value.as_ref()?;
        let none = "`from` does not say where events come from".to_owned();
        let help = "write `topics: [orders]`, or what only one broker has: `kafka`, `nats` or `core_nats`".to_owned();
        let keys = [&from.topics.key, &from.kafka.key, &from.nats.key, &from.core_nats.key];
        let two = "`from` says in two ways where events come from";
        if !self.one_way(keys, &from.topics.span, (none, help), two) {
            return None;
        }
        let others = [(&from.connection.key, "connection"), (&from.group.key, "group"), (&from.start.key, "start")];
        if let Some(input) = &from.kafka.value {
            self.belongs_inside(others, "kafka");
            return self.kafka_source(nth, input, prefix);
        }
        if let Some(input) = &from.nats.value {
            self.belongs_inside(others, "nats");
            return self.nats_source(nth, input, prefix);
        }
        if let Some(input) = &from.core_nats.value {
            self.belongs_inside(others, "core_nats");
            return self.core_source(nth, input, prefix);
        }
        from.topics.value.as_ref().and_then(|_| self.topics_source(nth, from, prefix))
    }

    /// Keys that stand beside the broker's own mapping instead of in it.
    fn belongs_inside<const N: usize>(&mut self, keys: [(&Option<Span>, &str); N], way: &str) {
        for (key, name) in keys {
            let Some(span) = key else { continue };
            let mistake = Mistake::at(Kind::OneBroker, span.clone(), format!("`{name}` stands beside `{way}`"));
            self.mistakes.push(mistake.help(format!("write it inside: `{way}: {{ {name}: ... }}`")));
        }
    }

    /// What a topic is on a connection, as far as that says.
    fn topic_of(&self, connection: &str) -> Option<TopicOf> {
        match self.broker_of(connection)? {
            Broker::Kafka => Some(TopicOf::Kafka),
            Broker::Nats => Some(match self.connection(connection)?.nats.value.as_ref()?.topics.value? {
                TopicsAre::Streams => TopicOf::Stream,
                TopicsAre::Core => TopicOf::Core,
            }),
        }
    }

    fn topics_source(&mut self, nth: usize, from: &Input, prefix: Option<&str>) -> Option<spec::SourceSpec> {
        let connection = self.connection_of(&from.connection, None)?;
        let (topic_of, group) = (self.topic_of(&connection)?, self.group(&from.group, prefix));
        let start = from.start.value.as_ref()?.0;
        if topic_of == TopicOf::Kafka {
            let topics = self.wire_topics(nth, Some(&connection), &from.topics, group.as_deref());
            (!topics.is_empty()).then_some(())?;
            let source = spec::KafkaSourceSpec { connection, topics, group: group?, instance: None, start };
            return Some(spec::SourceSpec::Kafka(source));
        }
        let [item, more @ ..] = from.topics.value.as_deref()? else { return None };
        if let Some(other) = more.first() {
            let message = "a pipeline reads one topic of NATS, and here are several";
            let help = "write a pipeline for each of them";
            self.mistakes.push(Mistake::at(Kind::OneBroker, other.span.clone(), message).help(help));
            return None;
        }
        let (topic, span) = (&item.value.0, &item.span);
        let is_subject = self.checked(names::subject(topic, names::Subject::Filter), span);
        let group = group.map(|group| without_dots(&group));
        let named = group.as_ref().is_some_and(|group| self.checked(names::nats("a group", group), &from.group.span));
        if topic_of == TopicOf::Core {
            if let Some(key) = &from.start.key {
                let message = "core NATS keeps nothing that one could begin with";
                let help = "delete `start`, or write `topics: streams` in the connection";
                self.mistakes.push(Mistake::at(Kind::OneBroker, key.clone(), message).help(help));
            }
            (is_subject && named).then_some(())?;
            let (subjects, key) = (vec![topic.clone()], NatsKey::Header);
            let source = CoreNatsSourceSpec { connection, subjects, queue: group?, key, subject_header: None };
            self.wire_core(nth, &source, span);
            return Some(spec::SourceSpec::CoreNats(source));
        }
        (is_subject && named).then_some(())?;
        let (stream, subject) = (without_dots(topic), topic.clone());
        self.wire_stream(nth, &connection, &stream, std::slice::from_ref(topic), group.clone(), span);
        Some(spec::SourceSpec::Nats(NatsSourceSpec::new(&connection, (stream, subject), group?, start)))
    }

    pub(super) fn target(&mut self, nth: usize, target: &Target, role: Role) -> Option<spec::TargetSpec> {
        let none = "the target does not say where events go".to_owned();
        let help = "write `topic: payments`, or what only one broker has: `kafka`, `nats` or `core_nats`".to_owned();
        let keys = [&target.topic.key, &target.kafka.key, &target.nats.key, &target.core_nats.key];
        if !self.one_way(keys, &target.topic.span, (none, help), "the target says in two ways where events go") {
            return None;
        }
        let others = [(&target.connection.key, "connection")];
        if let Some(kafka) = &target.kafka.value {
            self.belongs_inside(others, "kafka");
            return self.kafka_target(nth, kafka, role);
        }
        if let Some(nats) = &target.nats.value {
            self.belongs_inside(others, "nats");
            return self.nats_target(nth, nats, role);
        }
        if let Some(core) = &target.core_nats.value {
            self.belongs_inside(others, "core_nats");
            return self.core_target(nth, core, role);
        }
        let (topic, span) = (&target.topic.value.as_ref()?.0, &target.topic.span);
        let connection = self.connection_of(&target.connection, None);
        // One that is not known, or not whole, is taken for Kafka's: the name has to be a topic's anyway.
        let topic_of = connection.as_deref().and_then(|connection| self.topic_of(connection));
        match topic_of.unwrap_or(TopicOf::Kafka) {
            TopicOf::Kafka => self.kafka_topic(nth, connection, topic, span, role),
            TopicOf::Stream => self.stored_subject(nth, connection, topic, span, role),
            TopicOf::Core => self.core_subject(nth, connection, topic, span, role),
        }
    }

    /// The topics that are listed, and the streams that those on NATS are, each with its place.
    pub(super) fn topics(&mut self) -> (Vec<spec::TopicSpec>, Vec<(StreamSpec, Span)>) {
        let (mut topics, mut streams) = (Vec::new(), Vec::new());
        for entry in self.file.topics.value.as_ref().map_or(&[][..], |map| &map.entries) {
            let is_topic = self.checked(names::topic(&entry.name), &entry.span);
            let Some(topic) = &entry.value else { continue };
            // With one connection it is that one, whatever it reaches; of several the only one to Kafka.
            let known = self.file.connections.value.as_ref().map_or(&[][..], |map| &map.entries);
            let to_kafka = known.iter().filter(|entry| self.broker_of(&entry.name) == Some(Broker::Kafka)).count();
            let is_one_of_several = known.len() > 1 && to_kafka == 1 && !topic.connection.is_written();
            let broker = is_one_of_several.then_some(Broker::Kafka);
            let Some(connection) = self.connection_of(&topic.connection, broker).filter(|_| is_topic) else { continue };
            self.place(&connection, &entry.name, &entry.span);
            match self.topic_of(&connection) {
                Some(TopicOf::Kafka) => topics.extend(listed(entry, topic, connection)),
                Some(TopicOf::Stream) => {
                    let stream = self.topic_stream(entry, topic, &connection);
                    streams.extend(stream.map(|stream| (stream, entry.span.clone())));
                }
                // A subject needs no making.
                Some(TopicOf::Core) => {
                    self.checked(names::subject(&entry.name, names::Subject::Filter), &entry.span);
                    self.has_settings(entry, topic, "a subject of core NATS", "delete them: nothing is kept there");
                }
                None => {}
            }
        }
        (topics, streams)
    }

    /// Settings of a topic that is none of Kafka's.
    fn has_settings(&mut self, entry: &Named<Topic>, topic: &Topic, is: &str, help: &str) {
        if topic.settings.value.as_ref().is_some_and(|settings| !settings.entries.is_empty()) {
            let message = format!("`settings` are Kafka's, and topic `{}` is {is} here", entry.name);
            self.mistakes.push(Mistake::at(Kind::StreamSettings, key_of(&topic.settings), message).help(help));
        }
    }

    fn topic_stream(&mut self, entry: &Named<Topic>, topic: &Topic, connection: &str) -> Option<StreamSpec> {
        let name = without_dots(&entry.name);
        let subject = self.checked(names::subject(&entry.name, names::Subject::Filter), &entry.span);
        let help = format!("list it as a stream: `streams: {{ {name}: {{ subjects: [{}] }} }}`", entry.name);
        self.has_settings(entry, topic, "a stream of NATS", &help);
        let replicas = topic.replication.value.map_or(1, |copies| copies.0);
        if replicas > REPLICAS_MAX {
            let message = format!("a stream of NATS has at most {REPLICAS_MAX} copies");
            let help = format!("write `replication: {REPLICAS_MAX}` or less");
            self.mistakes.push(Mistake::at(Kind::OutOfBounds, topic.replication.span.clone(), message).help(help));
        }
        subject.then_some(())?;
        let stream = StreamSpec::implied(connection, name, vec![entry.name.clone()]);
        Some(StreamSpec { replicas: usize::try_from(replicas).unwrap_or(1), ..stream })
    }
}

fn key_of<T>(field: &Field<T>) -> Span {
    field.key.clone().unwrap_or_else(|| field.span.clone())
}

fn listed(entry: &Named<Topic>, topic: &Topic, connection: String) -> Option<spec::TopicSpec> {
    Some(spec::TopicSpec {
        connection,
        topic: entry.name.clone(),
        partitions: i32::try_from(topic.partitions.value?.0).unwrap_or(i32::MAX),
        replication: topic.replication.value.map(|count| i32::try_from(count.0).unwrap_or(i32::MAX)),
        settings: texts(topic.settings.value.as_ref().map_or(&[][..], |map| &map.entries)),
    })
}
