//! Does to each event what its header `fault`, or else the first word of its value, says. Other events are forwarded.
//!
//! | word | what happens |
//! | --- | --- |
//! | `trap` | the call traps without a word |
//! | `panic` | the call traps after a panic that names the row |
//! | `loop` | the call never returns |
//! | `memory` | the call allocates until it may not |
//! | `output` | an event of 17 MiB is published |
//! | `stack` | the call overflows its stack |
//! | `log` | 10,000 lines of 1 KiB are logged, the event is forwarded |
//! | `reject`, `retry` | the event fails, after it published once |
//! | `reject-batch`, `retry-batch` | the batch fails as a whole |
//! | `lie-cause`, `lie-output`, `lie-length`, `lie-offset`, `lie-failure` | the outcome cannot be true |
//! | `drop` | nothing is published |
//! | `twice` | the event is published twice |
//! | `tombstone` | a tombstone with the event's key and headers is published |

use std::hint::black_box;
use std::io::Write;

use fluxmill_function::{
    Batch, BinaryColumn, BinarySource, Emit, Error, Event, Failure, FailureKind, Outcome, function, info,
};

/// More than the default limit on output.
const OUTPUT: usize = 17 << 20;

fn faulty(batch: Batch) -> Result<Outcome, Error> {
    for event in batch.events() {
        match word(&event) {
            b"reject-batch" => return Err(Error::reject(format_args!("row {} rejects the batch", event.row()))),
            b"retry-batch" => return Err(Error::retry(format_args!("row {} retries the batch", event.row()))),
            _ => {}
        }
    }
    let mut outcome = batch.each(act);
    if let Some(liar) = batch.events().find(|event| word(event).starts_with(b"lie-")) {
        lie(word(&liar), &batch, &mut outcome);
    }
    Ok(outcome)
}
function!(faulty);

fn word<'b>(event: &Event<'b>) -> &'b [u8] {
    let text = event.header("fault").or(event.value()).unwrap_or_default();
    text.split(|&byte| byte == b' ').next().unwrap_or_default()
}

fn act(event: Event, out: &mut Emit) -> Result<(), Error> {
    match word(&event) {
        b"trap" => trap(),
        b"panic" => panic!("row {} panics", event.row()),
        b"loop" => loop {
            black_box(());
        },
        b"memory" => loop {
            std::mem::forget(black_box(Vec::<u8>::with_capacity(1 << 20)));
        },
        b"output" => flood(&event, out)?,
        b"stack" => _ = black_box(recurse(1)),
        b"log" => {
            let line = "x".repeat(1024);
            for number in 0..10_000 {
                info!(number; "{line}");
            }
            out.forward(&event);
        }
        b"reject" => {
            out.event().key("taken back").value("taken back");
            return Err(Error::reject("asked to reject"));
        }
        b"retry" => {
            out.event().key("taken back").value("taken back");
            return Err(Error::retry("asked to retry"));
        }
        b"drop" => {}
        b"twice" => {
            out.forward(&event);
            out.forward(&event);
        }
        b"tombstone" => out.event_from(&event).tombstone(),
        _ => out.forward(&event),
    }
    Ok(())
}

#[cfg(target_arch = "wasm32")]
fn trap() -> ! {
    core::arch::wasm32::unreachable()
}

#[cfg(not(target_arch = "wasm32"))]
fn trap() -> ! {
    std::process::abort()
}

fn flood(event: &Event, out: &mut Emit) -> Result<(), Error> {
    out.event_from(event).value_with(|value| {
        value.reserve(OUTPUT);
        let chunk = [0; 4096];
        for _ in 0..OUTPUT / chunk.len() {
            value.write_all(&chunk)?;
        }
        Ok::<(), Error>(())
    })
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 512]);
    if frame[0] == 0 { 0 } else { recurse(depth + 1) + frame[1] }
}

fn lie(word: &[u8], batch: &Batch, outcome: &mut Outcome) {
    let rows = batch.len() as u32;
    match word {
        b"lie-cause" => outcome.causes[0] = rows,
        b"lie-output" => outcome.outputs = vec![200; outcome.causes.len()],
        b"lie-length" => outcome.values = BinarySource::Replace(BinaryColumn::new()),
        b"lie-offset" => {
            let offsets = (0..=outcome.causes.len() as u32).rev().collect();
            outcome.values = BinarySource::Replace(BinaryColumn { offsets, data: vec![0; 8], validity: Vec::new() });
        }
        _ => outcome.failures.push(Failure {
            row: outcome.causes[0],
            kind: FailureKind::Reject,
            reason: "published too".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use fluxmill_function::testing::{Input, Runner};
    use fluxmill_function::{Error, FailureKind};

    #[test]
    fn harmless_words_do_what_they_say() {
        let inputs = ["1 plain", "drop 2", "twice 3", "tombstone 4", "reject 5", "retry 6"].map(Input::new);
        let marked = Input::new("anything").header("fault", "drop");
        let run = Runner::new(super::faulty).call(inputs.into_iter().chain([marked])).unwrap();
        assert_eq!(run.published.iter().map(|event| event.row).collect::<Vec<_>>(), [0, 2, 2, 3]);
        assert_eq!((run.published[0].text(), &run.published[3].value), ("1 plain", &None));
        assert_eq!(run.dropped, [1, 6]);
        let failed: Vec<_> = run.failures.iter().map(|failure| (failure.row, failure.kind)).collect();
        assert_eq!(failed, [(4, FailureKind::Reject), (5, FailureKind::Retry)]);
    }

    #[test]
    fn too_much_output_is_17_mib() {
        let run = Runner::new(super::faulty).call([Input::new("output")]).unwrap();
        assert_eq!(run.published[0].value.as_ref().map(Vec::len), Some(super::OUTPUT));
    }

    #[test]
    fn batch_words_fail_the_batch() {
        let call = |word: &str| Runner::new(super::faulty).call([Input::new("fine"), Input::new(word)]);
        assert_eq!(call("retry-batch").unwrap_err(), Error::retry("row 1 retries the batch"));
        assert_eq!(call("reject-batch").unwrap_err(), Error::reject("row 1 rejects the batch"));
    }

    #[test]
    fn lies_are_lies() {
        for word in ["lie-cause", "lie-output", "lie-length", "lie-offset", "lie-failure"] {
            let run = std::panic::catch_unwind(|| Runner::new(super::faulty).call([Input::new("a"), Input::new(word)]));
            assert!(run.is_err(), "{word} is believed");
        }
    }
}
