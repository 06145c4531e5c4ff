//! Where events come from and go, whichever broker that is.

use super::{
    ChainSpec, ConnectionSpec, KafkaConnection, KafkaSourceSpec, NatsSourceSpec, SourceSpec, StreamSpec, TargetSpec,
};

impl ConnectionSpec {
    /// The connection, when it is one to Kafka.
    pub fn kafka(&self) -> Option<&KafkaConnection> {
        match self {
            Self::Kafka(kafka) => Some(kafka),
            Self::Nats(_) => None,
        }
    }

    /// What tells clusters apart: one may have two names in two files.
    pub fn addresses(&self) -> &[String] {
        match self {
            Self::Kafka(kafka) => &kafka.brokers,
            Self::Nats(nats) => &nats.servers,
        }
    }
}

impl SourceSpec {
    /// The input, when it is Kafka's.
    pub fn kafka(&self) -> Option<&KafkaSourceSpec> {
        match self {
            Self::Kafka(kafka) => Some(kafka),
            Self::Nats(_) | Self::CoreNats(_) => None,
        }
    }

    /// The connection's name.
    pub fn connection(&self) -> &str {
        match self {
            Self::Kafka(kafka) => &kafka.connection,
            Self::Nats(nats) => &nats.connection,
            Self::CoreNats(nats) => &nats.connection,
        }
    }

    /// What is read, by name: topics, the stream, or subjects.
    pub fn places(&self) -> &[String] {
        match self {
            Self::Kafka(kafka) => &kafka.topics,
            Self::Nats(nats) => std::slice::from_ref(&nats.stream),
            Self::CoreNats(nats) => &nats.subjects,
        }
    }
}

impl TargetSpec {
    /// The connection's name.
    pub fn connection(&self) -> &str {
        match self {
            Self::Kafka { connection, .. } | Self::Nats { connection, .. } | Self::CoreNats { connection, .. } => {
                connection
            }
        }
    }

    /// The topic, or the subject.
    pub fn place(&self) -> &str {
        match self {
            Self::Kafka { topic, .. } => topic,
            Self::Nats { subject, .. } | Self::CoreNats { subject, .. } => subject,
        }
    }

    /// Whether what is published to it goes in atomic batches.
    pub fn is_atomic(&self) -> bool {
        matches!(self, Self::Nats { atomic: true, .. })
    }
}

impl ChainSpec {
    /// Every topic, stream and subject that the pipelines read or write, dead letters included, as connection and name.
    pub fn used_topics(&self) -> std::collections::BTreeSet<(&str, &str)> {
        let mut used = std::collections::BTreeSet::new();
        for pipeline in &self.pipelines {
            let (connection, places) = (pipeline.source.connection(), pipeline.source.places());
            used.extend(places.iter().map(|place| (connection, place.as_str())));
            used.extend(pipeline.targets().map(|target| (target.connection(), target.place())));
        }
        used
    }

    /// The subjects that an input on NATS takes; `None` where the file does not say.
    pub fn subjects_of<'a>(&'a self, source: &'a NatsSourceSpec) -> Option<&'a [String]> {
        if !source.subjects.is_empty() {
            return Some(&source.subjects);
        }
        let is_it = |stream: &&StreamSpec| (&stream.connection, &stream.name) == (&source.connection, &source.stream);
        self.streams.iter().find(is_it).map(|stream| stream.subjects.as_slice())
    }
}
