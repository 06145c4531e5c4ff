//! What a measurement needs beside Fluxmill: the raw librdkafka copy loop that it is compared with, and small tools
//! to make topics, to fill one, and to read back how many events are in one and when the broker appended them.
//!
//! ```text
//! copy-loop copy  BROKERS IN OUT EVENTS CODEC   copies, then prints events, seconds, CPU-seconds
//! copy-loop price BROKERS IN OUT EVENTS CODEC   the same, with the work of a function on the way
//! copy-loop load  BROKERS TOPIC EVENTS BYTES CODEC
//!                                               JSON orders of that many bytes, keyed by one of 1,000 customers;
//!                                               prints how many a filter and a pricing keep of them
//! copy-loop make  BROKERS PARTITIONS TOPIC...   creates topics whose timestamps are the broker's append times
//! copy-loop drop  BROKERS TOPIC...
//! copy-loop span  BROKERS TOPIC                 prints events, first and last append time (ms)
//! copy-loop committed BROKERS TOPIC             the same of a topic with transactions, by reading it
//! ```

mod copy;
mod tools;

use std::process::ExitCode;

use anyhow::{Context, bail};
use copy::{Job, Settings};

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
        [name @ ("copy" | "price"), brokers, input, output, events, compression] => {
            let job = if *name == "copy" { Job::Copy } else { Job::Price };
            let events = number(events)?;
            let copied = copy::copy(&Settings { brokers, input, output, events, job, compression })?;
            println!("events={} seconds={:.3} cpu_seconds={:.3}", copied.events, copied.seconds, copied.cpu_seconds);
        }
        ["load", brokers, topic, events, bytes, compression] => {
            let bytes = bytes.parse().with_context(|| format!("BYTES: `{bytes}` is no number"))?;
            let kept = tools::load(brokers, topic, number(events)?, bytes, compression)?;
            println!("filtered={} priced={}", kept.filtered, kept.priced);
        }
        ["make", brokers, partitions, topics @ ..] if !topics.is_empty() => {
            tools::make(brokers, partitions.parse().context("PARTITIONS")?, topics)?;
        }
        ["drop", brokers, topics @ ..] if !topics.is_empty() => tools::drop_topics(brokers, topics)?,
        [name @ ("span" | "committed"), brokers, topic] => {
            let read = if *name == "span" { tools::span } else { tools::committed };
            let span = read(brokers, topic)?;
            println!("events={} first_ms={} last_ms={}", span.events, span.first_ms, span.last_ms);
        }
        _ => bail!("see the first lines of src/main.rs for what to write"),
    }
    Ok(())
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("EVENTS: `{text}` is no number"))
}
