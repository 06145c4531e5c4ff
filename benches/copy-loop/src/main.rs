//! What a measurement needs beside Fluxmill: the raw librdkafka copy loop that it is compared with, and small tools
//! to make topics, to fill one, and to read back how many events are in one and when the broker appended them.
//!
//! ```text
//! copy-loop copy  BROKERS IN OUT EVENTS     copies, then prints events, seconds, CPU-seconds
//! copy-loop load  BROKERS TOPIC EVENTS      JSON orders of about 250 bytes, keyed by one of 1,000 customers
//! copy-loop make  BROKERS PARTITIONS TOPIC... creates topics whose timestamps are the broker's append times
//! copy-loop drop  BROKERS TOPIC...
//! copy-loop span  BROKERS TOPIC             prints events, first and last append time (ms)
//! ```

mod copy;
mod tools;

use std::process::ExitCode;

use anyhow::{Context, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        ["copy", brokers, input, output, events] => {
            let copied = copy::copy(brokers, input, output, number(events)?)?;
            println!("events={} seconds={:.3} cpu_seconds={:.3}", copied.events, copied.seconds, copied.cpu_seconds);
        }
        ["load", brokers, topic, events] => tools::load(brokers, topic, number(events)?)?,
        ["make", brokers, partitions, topics @ ..] if !topics.is_empty() => {
            tools::make(brokers, partitions.parse().context("PARTITIONS")?, topics)?;
        }
        ["drop", brokers, topics @ ..] if !topics.is_empty() => tools::drop_topics(brokers, topics)?,
        ["span", brokers, topic] => {
            let span = tools::span(brokers, topic)?;
            println!("events={} first_ms={} last_ms={}", span.events, span.first_ms, span.last_ms);
        }
        _ => bail!(
            "write: copy BROKERS IN OUT EVENTS, load BROKERS TOPIC EVENTS, make BROKERS PARTITIONS TOPIC..., drop BROKERS TOPIC..., or span BROKERS TOPIC"
        ),
    }
    Ok(())
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("EVENTS: `{text}` is no number"))
}
