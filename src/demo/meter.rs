//! What the demo knows of its chain: which topic feeds which pipeline, all counts, and what they were a moment ago.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::demo::view::{EventLine, Frame, HopFrame, Phase, TopicFrame};
use crate::spec::{ChainSpec, LastResort, PipelineSpec, TargetSpec};
use crate::telemetry::metrics::{Counter, PipelineMetrics, Snapshot};

/// Rates are those of the last second.
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// Latencies are those of the last five.
const LATENCY_WINDOW: Duration = Duration::from_secs(5);

/// One pipeline, with the topics around it.
#[derive(Debug)]
pub struct Hop {
    /// The pipeline's name.
    pub name: String,
    /// The topics it consumes.
    pub inputs: Vec<String>,
    /// The topics of its outputs, in their order.
    pub outputs: Vec<String>,
    /// The topic of its dead letters.
    pub dead_letter: Option<String>,
    /// Its counts.
    pub metrics: Arc<PipelineMetrics>,
}

/// A topic that ends the chain: nothing in it consumes the topic.
#[derive(Debug)]
pub struct End {
    /// The topic's name.
    pub topic: String,
    /// Events that the demo's own consumer has read back.
    pub seen: Counter,
}

/// The chain with its counts.
#[derive(Debug)]
pub struct Flow {
    /// The topic that orders are sent to.
    pub entry: String,
    /// Orders sent and acknowledged.
    pub generated: Counter,
    /// The pipelines, in the order of the file.
    pub hops: Vec<Hop>,
    /// The topics in which events end.
    pub ends: Vec<End>,
}

impl Flow {
    /// The flow of a chain that runs with these counts.
    pub fn new(chain: &ChainSpec, entry: &str, metrics: &[(String, Arc<PipelineMetrics>)]) -> Self {
        let hops: Vec<Hop> =
            chain.pipelines.iter().zip(metrics).map(|(spec, (_, metrics))| hop(spec, metrics.clone())).collect();
        let ends = ends(chain).into_iter().map(|topic| End { topic, seen: Counter::default() }).collect();
        Self { entry: entry.to_owned(), generated: Counter::default(), hops, ends }
    }

    /// Events that were published to a topic and acknowledged.
    pub fn published_to(&self, topic: &str) -> u64 {
        let mut total = if topic == self.entry { self.generated.get() } else { 0 };
        for hop in &self.hops {
            let outputs = hop.outputs.iter().zip(&hop.metrics.published);
            total += outputs.filter(|(output, _)| *output == topic).map(|(_, count)| count.get()).sum::<u64>();
            if hop.dead_letter.as_deref() == Some(topic) {
                total += hop.metrics.dead_lettered.get();
            }
        }
        total
    }

    /// Events that were published to a pipeline's topics.
    pub fn published_for(&self, hop: &Hop) -> u64 {
        hop.inputs.iter().map(|topic| self.published_to(topic)).sum()
    }

    /// Events that wait for a pipeline or are on their way through it.
    pub fn backlog(&self, hop: &Hop) -> u64 {
        // First what has ended: an acknowledgement may be counted a moment after the event was taken.
        let ended = hop.metrics.ended();
        self.published_for(hop).saturating_sub(ended)
    }

    /// All events on their way, those not yet read back at the end included.
    pub fn outstanding(&self) -> u64 {
        let hops: u64 = self.hops.iter().map(|hop| self.backlog(hop)).sum();
        let ends: u64 = self.ends.iter().map(|end| self.published_to(&end.topic).saturating_sub(end.seen.get())).sum();
        hops + ends
    }
}

fn hop(spec: &PipelineSpec, metrics: Arc<PipelineMetrics>) -> Hop {
    let topic = |target: &TargetSpec| target.place().to_owned();
    let dead_letter = match &spec.on_error.then {
        LastResort::DeadLetter(target) => Some(topic(target)),
        LastResort::Stop | LastResort::Drop => None,
    };
    let outputs = spec.outputs.iter().map(|output| topic(&output.target)).collect();
    Hop { name: spec.name.clone(), inputs: spec.source.places().to_vec(), outputs, dead_letter, metrics }
}

/// All topics that a chain uses.
pub fn topics(chain: &ChainSpec) -> BTreeSet<String> {
    chain.used_topics().into_iter().map(|(_, topic)| topic.to_owned()).collect()
}

/// The topics that nothing in the chain consumes.
pub fn ends(chain: &ChainSpec) -> Vec<String> {
    let mut ends = topics(chain);
    for pipeline in &chain.pipelines {
        for topic in pipeline.source.places() {
            ends.remove(topic);
        }
    }
    ends.into_iter().collect()
}

/// All counts at one moment.
struct Sample {
    at: Instant,
    topics: Vec<u64>,
    ended: Vec<u64>,
    latency: Vec<Snapshot>,
}

/// Takes samples and makes of them what is shown.
pub struct Meter {
    flow: Arc<Flow>,
    topics: Vec<String>,
    started: Instant,
    /// Not older than the longest window, except the first.
    samples: VecDeque<Sample>,
}

impl Meter {
    /// A meter of this flow, with its first sample.
    pub fn new(flow: Arc<Flow>) -> Self {
        let mut topics = BTreeSet::from([flow.entry.clone()]);
        for hop in &flow.hops {
            topics.extend(hop.outputs.iter().chain(&hop.dead_letter).cloned());
        }
        let mut meter =
            Self { flow, topics: topics.into_iter().collect(), started: Instant::now(), samples: VecDeque::new() };
        let first = meter.sample();
        meter.samples.push_back(first);
        meter
    }

    fn sample(&self) -> Sample {
        Sample {
            at: Instant::now(),
            topics: self.topics.iter().map(|topic| self.flow.published_to(topic)).collect(),
            ended: self.flow.hops.iter().map(|hop| hop.metrics.ended()).collect(),
            latency: self.flow.hops.iter().map(|hop| hop.metrics.latency.snapshot()).collect(),
        }
    }

    /// Takes a sample and says what to show.
    pub fn frame(&mut self, phase: Phase, address: &str, events: Vec<EventLine>) -> Frame {
        let now = self.sample();
        let then = self.since(&now, RATE_WINDOW);
        let past = self.since(&now, LATENCY_WINDOW);
        let elapsed = (now.at - then.at).as_secs_f64();
        let rate = |now: u64, then: u64| if elapsed > 0.0 { (now - then) as f64 / elapsed } else { 0.0 };
        let topic = |name: &str, dead_letter: bool| {
            let at = self.topics.iter().position(|topic| topic == name).expect("a meter knows all topics");
            let rate = rate(now.topics[at], then.topics[at]);
            TopicFrame { topic: name.to_owned(), rate, total: now.topics[at], dead_letter }
        };
        let hops = self.flow.hops.iter().enumerate().map(|(at, hop)| {
            let latency = now.latency[at].since(&past.latency[at]);
            let outputs = hop.outputs.iter().map(|output| topic(output, false));
            let dead_letter = hop.dead_letter.iter().map(|letters| topic(letters, true));
            HopFrame {
                name: hop.name.clone(),
                inputs: hop.inputs.join(", "),
                rate: rate(now.ended[at], then.ended[at]),
                total: now.ended[at],
                p50: latency.quantile(0.5),
                p99: latency.quantile(0.99),
                backlog: self.flow.backlog(hop),
                outputs: outputs.chain(dead_letter).collect(),
            }
        });
        let (entry, hops) = (topic(&self.flow.entry, false), hops.collect());
        let running = now.at - self.started;
        while self.samples.get(1).is_some_and(|second| now.at - second.at >= LATENCY_WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back(now);
        Frame { phase, address: address.to_owned(), running, entry, hops, events }
    }

    /// The newest sample that is at least so old, or the oldest.
    fn since(&self, now: &Sample, window: Duration) -> &Sample {
        let old = self.samples.iter().rev().find(|sample| now.at - sample.at >= window);
        old.or(self.samples.front()).expect("the first sample is taken when the meter is made")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// orders -> payment -> payments -> notification -> notifications, with a review and dead letters.
    pub(crate) fn flow() -> Flow {
        let hop = |name: &str, input: &str, outputs: &[&str]| Hop {
            name: name.into(),
            inputs: vec![input.into()],
            outputs: outputs.iter().map(|&topic| topic.into()).collect(),
            dead_letter: Some(format!("orders.{name}.dead")),
            metrics: Arc::new(PipelineMetrics::new(outputs.len())),
        };
        let end = |topic: &str| End { topic: topic.into(), seen: Counter::default() };
        Flow {
            entry: "orders".into(),
            generated: Counter::default(),
            hops: vec![
                hop("payment", "orders", &["payments", "payment-reviews"]),
                hop("notification", "payments", &["notifications"]),
            ],
            ends: ["notifications", "orders.notification.dead", "orders.payment.dead", "payment-reviews"]
                .into_iter()
                .map(end)
                .collect(),
        }
    }

    /// 100 orders, of which 90 were paid, 8 are reviewed and 2 failed.
    pub(crate) fn complete(flow: &Flow) {
        flow.generated.add(100);
        let [payment, notification] = [&flow.hops[0].metrics, &flow.hops[1].metrics];
        payment.received.add(100);
        payment.processed.add(98);
        payment.dead_lettered.add(2);
        payment.published[0].add(90);
        payment.published[1].add(8);
        notification.received.add(90);
        notification.processed.add(90);
        notification.published[0].add(90);
        for (end, seen) in flow.ends.iter().zip([90, 0, 2, 8]) {
            end.seen.add(seen);
        }
    }

    #[test]
    fn what_is_outstanding_counts_every_stretch_of_the_way() {
        let flow = flow();
        assert_eq!(flow.outstanding(), 0);
        flow.generated.add(10);
        assert_eq!((flow.backlog(&flow.hops[0]), flow.outstanding()), (10, 10));
        flow.hops[0].metrics.published[0].add(6);
        flow.hops[0].metrics.processed.add(6);
        assert_eq!((flow.backlog(&flow.hops[0]), flow.backlog(&flow.hops[1])), (4, 6));
        flow.hops[1].metrics.published[0].add(6);
        flow.hops[1].metrics.processed.add(6);
        assert_eq!(flow.outstanding(), 4 + 6);
        flow.ends[0].seen.add(6);
        assert_eq!(flow.outstanding(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_second() {
        let flow = Arc::new(flow());
        let mut meter = Meter::new(flow.clone());
        for _ in 0..40 {
            tokio::time::advance(Duration::from_millis(250)).await;
            flow.generated.add(50);
            meter.frame(Phase::Running, "", Vec::new());
        }
        tokio::time::advance(Duration::from_millis(250)).await;
        let frame = meter.frame(Phase::Running, "", Vec::new());
        assert_eq!(frame.entry.total, 2_000);
        assert!((frame.entry.rate - 150.0).abs() < 1.0, "{}", frame.entry.rate);
        assert!(meter.samples.len() <= 22, "{}", meter.samples.len());
    }
}
