//! What every broker must pass: one list of cases (`conformance/cases.rs`), run on each by what `conformance/world.rs`
//! asks of it. The cases drive sources and sinks themselves: the test is the lane, takes the batches, and decides when
//! events end.
//!
//! `cargo test --test conformance -- jetstream/` runs the cases of one broker.

#![allow(clippy::disallowed_methods, reason = "tests are not wired by src/pipeline.rs")]

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use cases::CASES;
use kafka::{By, KafkaWorld};
use stage::Stage;
use support::chain::repository;
use support::kafka::Missing;
use support::suite::{Case, Suite, no_kafka};
use world::{Needs, World};

#[path = "conformance/cases.rs"]
mod cases;
#[path = "conformance/core_nats.rs"]
mod core_nats;
#[path = "conformance/jetstream.rs"]
mod jetstream;
#[path = "conformance/kafka.rs"]
mod kafka;
#[path = "conformance/memory.rs"]
mod memory;
#[path = "conformance/stage.rs"]
mod stage;
mod support;
#[path = "conformance/world.rs"]
mod world;

/// A broker that the cases run on.
struct Broker {
    name: &'static str,
    /// Why it is not on this machine, if it is not.
    missing: fn() -> Option<Missing>,
    /// Starts it, or a part of it, for this case, of this name, which needs this.
    start: fn(&Case, &str, Needs) -> anyhow::Result<Box<dyn World>>,
    /// The cases that do not apply, each with its reason. The table of docs/delivery.md has the same.
    not: &'static [(&'static str, &'static str)],
}

const MOCK_NOT: &[(&str, &str)] =
    &[("take_over", "the mock refuses commits of a member that gives partitions up, so that events are doubled")];

const KEEPS_NOTHING: &str = "it keeps nothing and confirms nothing: what is not taken, or not done, is lost";
const CORE_NOT: &[(&str, &str)] = &[
    ("back_pressure", "what finds no room is lost, and counted: tests/core_nats.rs"),
    ("redelivery", KEEPS_NOTHING),
    ("out_of_order", KEEPS_NOTHING),
    ("restart", KEEPS_NOTHING),
    ("take_over", "members of a queue group share single messages: tests/core_nats.rs"),
    ("slow_function", "nothing is delivered again: there is no patience to run out of"),
    ("reconnect", "what is in flight in an outage is lost; what comes behind it goes on: tests/core_nats.rs"),
];

const BROKERS: &[Broker] = &[
    Broker {
        name: "memory",
        missing: || None,
        start: memory::MemoryWorld::start,
        not: &[("slow_function", "it has neither sessions nor an ack wait: there is no patience to run out of")],
    },
    Broker {
        name: "mock.columnar",
        missing: || None,
        start: |case, name, needs| KafkaWorld::mock(case, name, needs, By::Columnar),
        not: MOCK_NOT,
    },
    Broker {
        name: "mock.librdkafka",
        missing: || None,
        start: |case, name, needs| KafkaWorld::mock(case, name, needs, By::Librdkafka),
        not: MOCK_NOT,
    },
    Broker {
        name: "kafka.columnar",
        missing: no_kafka,
        start: |case, name, needs| KafkaWorld::real(case, name, needs, By::Columnar),
        not: &[],
    },
    Broker {
        name: "kafka.librdkafka",
        missing: no_kafka,
        start: |case, name, needs| KafkaWorld::real(case, name, needs, By::Librdkafka),
        not: &[],
    },
    Broker { name: "jetstream", missing: support::nats::missing, start: jetstream::JetStreamWorld::start, not: &[] },
    Broker { name: "core_nats", missing: support::nats::missing, start: core_nats::CoreWorld::start, not: CORE_NOT },
];

fn main() -> ExitCode {
    let mut suite = Suite::default();
    for broker in BROKERS {
        for case in CASES {
            let name = format!("{}/{}", broker.name, case.name);
            if let Some((_, reason)) = broker.not.iter().find(|(not, _)| *not == case.name) {
                suite.does_not_apply("conformance", name, reason);
                continue;
            }
            suite.named("conformance", name, broker.missing, |test: &Case| {
                let world = (broker.start)(test, case.name, case.needs)?;
                (case.run)(&Stage::new(test, world)?)
            });
        }
    }
    suite.named("conformance", "the_documents_say_what_applies".to_owned(), || None, documented);
    suite.run()
}

/// A case that is named as one that does not apply is one, and docs/delivery.md says of each what is so here.
fn documented(_: &Case) -> anyhow::Result<()> {
    for (not, _) in BROKERS.iter().flat_map(|broker| broker.not) {
        ensure!(CASES.iter().any(|case| case.name == *not), "no case has the name {not}");
    }
    let text = std::fs::read_to_string(repository("docs/delivery.md"))?;
    let (_, text) = text.split_once("\n## What every broker passes\n").context("no such part in docs/delivery.md")?;
    let row = |name: &str| text.lines().find(|line| line.starts_with(&format!("| {name} |")));
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let columns = cells(row("case").context("no table of cases")?);
    for case in CASES {
        let its = cells(row(&format!("`{}`", case.name)).with_context(|| format!("no row for {}", case.name))?);
        for broker in BROKERS {
            let name = broker.name.split('.').next().unwrap_or_default();
            let column = columns.iter().position(|column| column == name);
            let cell = column.and_then(|column| its.get(column)).with_context(|| format!("no column for {name}"))?;
            let applies = !broker.not.iter().any(|(not, _)| *not == case.name);
            ensure!(cell.starts_with("yes") == applies, "{}/{}: the table says `{cell}`", broker.name, case.name);
        }
    }
    Ok(())
}
