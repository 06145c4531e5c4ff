//! Kafka with as little as possible around it: the copy that no client can be much cheaper than, and a client that
//! measures latency and adds little to it. Both speak to one broker that leads every partition, over plain TCP.
//!
//! ```text
//! bare copy    BROKER IN OUT EVENTS CODEC     copies: fetch, columns, produce; from the beginning of IN
//! bare latency BROKER IN OUT RATE SECONDS     produces to IN at a fixed rate, and says how long each event took to OUT;
//!                                             IN and OUT may be the same topic
//! ```
//!
//! It is a bound, not a product: no headers, no idempotence, no groups, no commits, no retries; any error ends it.

mod batch;
mod codec;
mod copy;
mod latency;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

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
        ["copy", broker, input, output, events, codec] => {
            let events = copy::copy(broker, input, output, number(events)?, codec.parse()?)?;
            println!("events={events}");
        }
        ["latency", broker, input, output, rate, seconds] => {
            let plan = latency::Plan { rate: number(rate)?, time: Duration::from_secs(number(seconds)?) };
            println!("{}", latency::measure(broker, input, output, &plan)?);
        }
        _ => bail!("see the first lines of src/main.rs for what to write"),
    }
    Ok(())
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("`{text}` is no number"))
}
