//! JetStream with as little as possible around async-nats: the copy from stream to stream that Fluxmill is measured
//! against, a client that measures latency, and the tools of the measurements.
//!
//! ```text
//! nats-loop make    URL STREAM                       a stream on disk that stores STREAM.>
//! nats-loop load    URL STREAM EVENTS BYTES          the same, with events of that size in it, of 1,000 customers
//! nats-loop drop    URL STREAM...                    deletes streams
//! nats-loop span    URL STREAM                       how many events it has, when it stored the first and the last
//! nats-loop copy    URL IN OUT EVENTS plain|id|all   copies: with `id`, each message gets one that is the same each time;
//!                                                    with `all`, its key and its time too
//! nats-loop latency URL IN OUT RATE SECONDS          publishes to IN at a fixed rate, and says how long each event took
//!                                                    to OUT; IN and OUT may be the same stream
//! ```
//!
//! It is a rival, not a product: no reconnects that lose nothing, no retries; any error ends it.

mod copy;
mod latency;
mod tools;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use copy::Adds;

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

#[tokio::main(worker_threads = 2)]
async fn run(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        ["make", url, stream] => tools::make(url, stream).await?,
        ["load", url, stream, events, bytes] => {
            tools::load(url, stream, number(events)?, usize::try_from(number(bytes)?)?).await?;
        }
        ["drop", url, streams @ ..] => tools::drop_streams(url, streams).await?,
        ["span", url, stream] => println!("{}", tools::span(url, stream).await?),
        ["copy", url, input, output, events, adds] => {
            let adds = match *adds {
                "plain" => Adds::Nothing,
                "id" => Adds::Id,
                "all" => Adds::IdKeyTime,
                _ => bail!("`{adds}` is none of plain, id, all"),
            };
            copy::copy(url, input, output, number(events)?, adds).await?;
        }
        ["latency", url, input, output, rate, seconds] => {
            let plan = latency::Plan { rate: number(rate)?, time: Duration::from_secs(number(seconds)?) };
            println!("{}", latency::measure(url, input, output, &plan).await?);
        }
        _ => bail!("see the first lines of src/main.rs for what to write"),
    }
    Ok(())
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("`{text}` is no number"))
}
