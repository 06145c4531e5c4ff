//! How the pipelines of one run hang together by their topics: pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::broker::nats::admin::Used;
use crate::spec::{ChainSpec, PipelineSpec, SourceSpec, StreamSpec, TargetSpec, TopicSpec, subjects_meet};

/// The pipelines of one run and which of them feed which.
#[derive(Debug)]
pub struct Topology<'a> {
    pipelines: Vec<(&'a ChainSpec, &'a PipelineSpec)>,
    upstream: Vec<Vec<usize>>,
    /// The same, by their dead letters too.
    with_letters: Vec<Vec<usize>>,
}

/// By what one pipeline feeds another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Feeds {
    Outputs,
    /// Outputs and dead letters.
    All,
}

impl<'a> Topology<'a> {
    /// The topology of these chains, run together.
    pub fn of(chains: &'a [ChainSpec]) -> Self {
        let pipelines: Vec<_> =
            chains.iter().flat_map(|chain| chain.pipelines.iter().map(move |pipeline| (chain, pipeline))).collect();
        let fed =
            |feeds: Feeds| pipelines.iter().map(|&(chain, spec)| upstreams(&pipelines, chain, spec, feeds)).collect();
        let (upstream, with_letters) = (fed(Feeds::Outputs), fed(Feeds::All));
        Self { pipelines, upstream, with_letters }
    }

    /// The pipelines with their chains, in the order of the files.
    pub fn pipelines(&self) -> impl ExactSizeIterator<Item = (&'a ChainSpec, &'a PipelineSpec)> + '_ {
        self.pipelines.iter().copied()
    }

    /// The pipelines that publish to a topic which this one consumes.
    pub fn upstream(&self, pipeline: usize) -> &[usize] {
        &self.upstream[pipeline]
    }

    /// The pipelines that publish to this one over what keeps nothing, so that it hears only what they publish while it
    /// reads. Without those that hear, over others too, what it publishes itself: of a loop nobody can be the first.
    pub fn hears(&self, pipeline: usize) -> Vec<usize> {
        let unkept = |at: usize| match self.pipelines[at].1.source {
            SourceSpec::CoreNats(_) => self.with_letters[at].as_slice(),
            _ => &[],
        };
        let hears_it = |&other: &usize| {
            let (mut next, mut seen) = (vec![other], BTreeSet::new());
            while let Some(at) = next.pop() {
                if at == pipeline {
                    return true;
                }
                next.extend(unkept(at).iter().filter(|&&at| seen.insert(at)));
            }
            false
        };
        unkept(pipeline).iter().copied().filter(|other| !hears_it(other)).collect()
    }

    /// Two pipelines, of different files, that would share a consumer group on one topic, in words. Each would see a
    /// part of the events. Within one file the configuration refuses it.
    pub fn a_shared_group(&self) -> Option<String> {
        let mut groups = BTreeMap::new();
        for (chain, pipeline) in self.pipelines() {
            let (what, name) = match &pipeline.source {
                SourceSpec::Kafka(source) => ("topic", &source.group),
                SourceSpec::Nats(source) => ("stream", &source.durable),
                SourceSpec::CoreNats(source) => ("subject", &source.queue),
            };
            for place in pipeline.source.places() {
                let group = (brokers(chain, pipeline.source.connection()), name, place);
                if let Some((other, first)) = groups.insert(group, (&chain.name, &pipeline.name)) {
                    return Some(format!(
                        "pipelines {other}/{first} and {}/{} consume {what} {place} in one group, {name}",
                        chain.name, pipeline.name
                    ));
                }
            }
        }
        None
    }

    /// A loop, such as `a -> b -> a`, if there is one.
    pub fn a_loop(&self) -> Option<String> {
        (0..self.pipelines.len()).find_map(|start| {
            let mut path = vec![start];
            self.walk(start, &mut path, &mut BTreeSet::new()).then(|| {
                path.reverse();
                let names: Vec<_> = path.iter().map(|&at| self.pipelines[at].1.name.as_str()).collect();
                names.join(" -> ")
            })
        })
    }

    /// Follows upstream pipelines from the end of `path`; true when `start` was met again.
    fn walk(&self, start: usize, path: &mut Vec<usize>, seen: &mut BTreeSet<usize>) -> bool {
        let at = *path.last().expect("a path begins somewhere");
        for &next in &self.upstream[at] {
            path.push(next);
            if next == start || (seen.insert(next) && self.walk(start, path, seen)) {
                return true;
            }
            path.pop();
        }
        false
    }
}

/// The indices of the pipelines that publish to a topic which `pipeline` consumes.
fn upstreams(all: &[(&ChainSpec, &PipelineSpec)], chain: &ChainSpec, pipeline: &PipelineSpec, by: Feeds) -> Vec<usize> {
    let cluster = brokers(chain, pipeline.source.connection());
    let feeds = |&(other, candidate): &(&ChainSpec, &PipelineSpec)| {
        let reaches = |target: &TargetSpec| match (&pipeline.source, target) {
            (SourceSpec::Kafka(source), TargetSpec::Kafka { topic, .. }) => source.topics.contains(topic),
            // A stream stores what is published in either way, and so does core NATS bring it.
            (SourceSpec::Nats(source), TargetSpec::Nats { subject, .. } | TargetSpec::CoreNats { subject, .. }) => {
                // The stream may be listed in the file of whoever writes to it.
                let subjects = chain.subjects_of(source).or_else(|| other.subjects_of(source)).unwrap_or_default();
                subjects.iter().any(|read| subjects_meet(read, subject))
            }
            (SourceSpec::CoreNats(source), TargetSpec::Nats { subject, .. } | TargetSpec::CoreNats { subject, .. }) => {
                source.subjects.iter().any(|read| subjects_meet(read, subject))
            }
            _ => false,
        };
        let targets = candidate.targets().take(if by == Feeds::All { usize::MAX } else { candidate.outputs.len() });
        targets.into_iter().any(|target| reaches(target) && brokers(other, target.connection()) == cluster)
    };
    all.iter().enumerate().filter(|(_, candidate)| feeds(candidate)).map(|(index, _)| index).collect()
}

/// What tells clusters apart: the same one may have two names in two files.
fn brokers<'a>(chain: &'a ChainSpec, connection: &str) -> &'a [String] {
    chain.connections[connection].addresses()
}

/// The streams of one connection: those to create when missing, and what pipelines use.
pub fn streams_on<'a>(chain: &'a ChainSpec, connection: &str) -> (Vec<&'a StreamSpec>, Used<'a>) {
    let create = chain.streams.iter().filter(|stream| stream.connection == connection).collect();
    let stream = |pipeline: &'a PipelineSpec| match &pipeline.source {
        SourceSpec::Nats(source) if source.connection == connection => Some(source.stream.as_str()),
        _ => None,
    };
    let streams: BTreeSet<&str> = chain.pipelines.iter().filter_map(stream).collect();
    // Core NATS needs no stream.
    let stored = |target: &'a TargetSpec| match target {
        TargetSpec::Nats { connection: on, subject, atomic } if on == connection => Some((subject.as_str(), *atomic)),
        _ => None,
    };
    let targets = chain.pipelines.iter().flat_map(PipelineSpec::targets);
    let subjects: BTreeSet<(&str, bool)> = targets.filter_map(stored).collect();
    (create, Used { streams: streams.into_iter().collect(), subjects: subjects.into_iter().collect() })
}

/// The topics of one connection: those to create when missing, and all that pipelines use.
pub fn topics_on<'a>(chain: &'a ChainSpec, connection: &str) -> (Vec<&'a TopicSpec>, Vec<&'a str>) {
    let create = chain.topics.iter().filter(|topic| topic.connection == connection).collect();
    let used = chain.used_topics().into_iter().filter(|(on, _)| *on == connection).map(|(_, topic)| topic).collect();
    (create, used)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::*;

    fn kafka(topic: &str) -> TargetSpec {
        TargetSpec::Kafka { connection: "main".into(), topic: topic.into() }
    }

    fn pipeline(name: &str, from: &str, to: &[&str]) -> PipelineSpec {
        let source = KafkaSourceSpec {
            connection: "main".into(),
            topics: vec![from.into()],
            group: name.into(),
            instance: None,
            start: StartOffset::Earliest,
        };
        let retry = RetrySpec { attempts: 1, backoff_min: Duration::ZERO, backoff_max: Duration::ZERO, max_age: None };
        PipelineSpec {
            name: name.into(),
            source: SourceSpec::Kafka(source),
            batch: BatchLimits { max_events: 1, max_bytes: 1, max_wait: Duration::ZERO },
            order: Order::Partition,
            lanes: 1,
            guarantee: Guarantee::AtLeastOnce,
            commit: CommitSpec::of(Guarantee::AtLeastOnce),
            function: None,
            outputs: to.iter().map(|topic| OutputSpec { name: (*topic).into(), target: kafka(topic) }).collect(),
            on_error: OnErrorSpec {
                retry,
                then: LastResort::DeadLetter(kafka(&format!("{name}.dead"))),
                when_missing: WhenMissing::Stop,
            },
        }
    }

    fn chain(brokers: &str, pipelines: Vec<PipelineSpec>) -> ChainSpec {
        let kafka = KafkaConnection {
            brokers: vec![brokers.into()],
            tls: None,
            sasl: None,
            client: KafkaClient::Librdkafka,
            properties: Default::default(),
        };
        ChainSpec {
            name: "test".into(),
            connections: [("main".into(), ConnectionSpec::Kafka(kafka))].into(),
            topics: Vec::new(),
            streams: Vec::new(),
            pipelines,
            allow_loop: true,
        }
    }

    #[test]
    fn pipelines_are_joined_by_topics_of_one_cluster() {
        let orders =
            vec![pipeline("payment", "orders", &["payments", "reviews"]), pipeline("notify", "payments", &["sent"])];
        let chains = [chain("a:9092", orders), chain("a:9092", vec![pipeline("audit", "reviews", &["log"])])];
        let topology = Topology::of(&chains);
        assert_eq!((topology.upstream(0), topology.upstream(1), topology.upstream(2)), (&[][..], &[0][..], &[0][..]));
        assert_eq!(topology.a_loop(), None);
        let elsewhere = [chains[0].clone(), chain("b:9092", chains[1].pipelines.clone())];
        assert!(Topology::of(&elsewhere).upstream(2).is_empty());
    }

    #[test]
    fn a_group_that_two_files_share_is_named() {
        let chains = [
            chain("a:9092", vec![pipeline("copy", "x", &["y"])]),
            chain("a:9092", vec![pipeline("copy", "x", &["z"])]),
        ];
        let told = Topology::of(&chains).a_shared_group();
        assert_eq!(told.as_deref(), Some("pipelines test/copy and test/copy consume topic x in one group, copy"));
        let elsewhere = [chains[0].clone(), chain("b:9092", chains[1].pipelines.clone())];
        assert_eq!(Topology::of(&elsewhere).a_shared_group(), None);
    }

    #[test]
    fn a_loop_is_found_and_drawn() {
        let chains =
            [chain("a:9092", vec![pipeline("a", "x", &["y"]), pipeline("b", "y", &["z"]), pipeline("c", "z", &["x"])])];
        assert_eq!(Topology::of(&chains).a_loop().as_deref(), Some("a -> b -> c -> a"));
    }

    fn core(subject: &&str) -> TargetSpec {
        TargetSpec::CoreNats { connection: "edge".into(), subject: (*subject).into() }
    }

    /// Over core NATS, from subjects to subjects.
    fn unkept(name: &str, from: &[&str], to: &[&str]) -> PipelineSpec {
        let mut spec = pipeline(name, "", &[]);
        spec.source = SourceSpec::CoreNats(CoreNatsSourceSpec {
            connection: "edge".into(),
            subjects: from.iter().map(|subject| (*subject).into()).collect(),
            queue: name.into(),
            key: NatsKey::Header,
            subject_header: None,
        });
        spec.outputs = to.iter().map(|to| OutputSpec { name: (*to).into(), target: core(to) }).collect();
        spec
    }

    #[test]
    fn who_is_heard_is_not_part_of_a_loop() {
        let mut entry = unkept("entry", &[], &["a"]);
        entry.source = pipeline("entry", "orders", &[]).source;
        let pipelines = vec![
            entry,
            unkept("one", &["a", "c"], &["b"]),
            unkept("two", &["b"], &["c"]),
            unkept("end", &["c"], &["d"]),
            unkept("self", &["d", "e"], &["e"]),
        ];
        let mut chain = chain("a:9092", pipelines);
        let servers = vec!["nats://a:4222".into()];
        let nats = NatsConnection { servers, tls: None, auth: NatsAuth::None };
        chain.connections.insert("edge".into(), ConnectionSpec::Nats(nats));
        let chains = [chain];
        let topology = Topology::of(&chains);
        let heard: Vec<_> = (0..5).map(|at| topology.hears(at)).collect();
        assert_eq!(heard, [vec![], vec![0], vec![], vec![2], vec![3]]);
        let mut letters = chains.clone();
        letters[0].pipelines[0].on_error.then = LastResort::DeadLetter(core(&"d"));
        assert_eq!(Topology::of(&letters).hears(4), [0, 3]);
        assert_eq!(topology.upstream(1), [0, 2]);
    }

    #[test]
    fn all_topics_of_a_connection_are_used() {
        let chain = chain("a:9092", vec![pipeline("payment", "orders", &["payments"])]);
        assert_eq!(topics_on(&chain, "main").1, ["orders", "payment.dead", "payments"]);
        assert!(topics_on(&chain, "other").1.is_empty());
    }
}
